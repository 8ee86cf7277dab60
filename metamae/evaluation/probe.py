"""Linear probe: how well a linear map reads the label off frozen features (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.randomness import fold, seeded
from metamae.config.sections import ProbeConfig
from metamae.data.dataset import Array, Task
from metamae.errors import TrainingError
from metamae.evaluation.features import Features, check_features
from metamae.evaluation.metrics import score, score_with_ignored
from metamae.evaluation.result import Evaluation
from metamae.progress import Reporter
from metamae.randomness import generator


def describe_probe(config: ProbeConfig) -> str:
    """The settings in words.

    Example:
        >>> from metamae.config import ProbeConfig
        >>> from metamae.evaluation.probe import describe_probe
        >>> describe_probe(ProbeConfig())
        'linear, Adam 0.0001, L2 0.0001, 100 epochs, last'
    """
    text = (
        f"linear, Adam {config.learning_rate:g}, L2 {config.weight_decay:g}, "
        f"{config.epochs} epochs, last"
    )
    if config.batch_size != ProbeConfig().batch_size:  # rows of before know of no other
        text += f", batches of {config.batch_size}"
    return text + (", standardised features" if config.standardise else "")


def fit_probe(
    features: Features,
    config: ProbeConfig,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
    title: str = "probe",
) -> Evaluation:
    """Fit one linear layer with Adam and report its test metric after the last epoch.

    Cross-entropy for classes (of the example, or of each of its tokens), binary cross-entropy of
    one logit for two classes, squared error for regression; batches are shuffled and the last
    partial one is dropped.

    Args:
        features: Features and labels of training and test rows.
        config: Epochs, batch size, learning rate, L2 decay.
        seed: Seed of the initial weights and of the order.
        reporter: Shows progress; silent by default.
        title: Title of the bar.

    Raises:
        InputError: features and labels that do not fit each other, or are not finite.
        DataError: a class of the test rows that no training row has.
        TrainingError: the weights diverged.

    Example:
        >>> import numpy as np, torch
        >>> from metamae.config import ProbeConfig
        >>> from metamae.data import Task
        >>> from metamae.evaluation import Features, fit_probe
        >>> x = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
        >>> y = np.tile([0, 1], 50)
        >>> task = Task(kind="binary", metric="accuracy", classes=("low", "high"))
        >>> features = Features(task=task, train=x, train_labels=y, test=x, test_labels=y)
        >>> fit_probe(features, ProbeConfig(learning_rate=0.1, epochs=20)).value
        1.0
    """
    settings = describe_probe(config)
    return fit_head(features, config, nn.Linear, "published", settings, seed, reporter, title)


def fit_head(
    features: Features,
    config: ProbeConfig,
    head: Callable[[int, int], nn.Module],
    protocol: str,
    settings: str,
    seed: int,
    reporter: Reporter | None,
    title: str,
    *,
    of_tokens: bool = False,
) -> Evaluation:
    """Fit any head as :func:`fit_probe` fits a linear layer.

    Args:
        features: See there; with ``of_tokens`` of examples too ``(N, L, D)``.
        config: See there.
        head: Makes it of the width of the features and the number of outputs.
        protocol: Name of the protocol.
        settings: Its settings in words.
        seed: See there.
        reporter: See there.
        title: See there.
        of_tokens: Whether the head reads all tokens of an example.
    """
    task, train, test = features.task, features.train, features.test
    of_examples = of_tokens and task.kind != "token_classification" and train.ndim == test.ndim == 3
    check_features(
        replace(features, train=train.mean(1), test=test.mean(1)) if of_examples else features
    )
    if config.standardise:
        train, test = standardise(train, test)
    with seeded(fold(seed, "probe")):
        layer = head(train.shape[-1], task.outputs)
    optimiser = torch.optim.Adam(
        layer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    targets = torch.from_numpy(np.array(features.train_labels))  # memory maps are read-only
    if task.kind != "regression":
        targets = targets.long()
    size = min(config.batch_size, len(train))
    values: list[float] = []
    with (reporter or Reporter(None)).stage(title, total=config.epochs, unit="epochs") as stage:
        for epoch in range(config.epochs):
            order = torch.randperm(len(targets), generator=generator(seed, "probe order", epoch))
            layer.train()
            for start in range(0, len(order) - size + 1, size):
                index = order[start : start + size]
                loss = _loss(layer(train[index]), targets[index], task)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            _refuse_divergence(layer.eval(), epoch)
            predictions = predict(layer, test, task)
            values.append(score(task, features.test_labels, predictions))
            stage.advance(loss=loss.item())
    best = int(np.argmax(values))
    return Evaluation(
        protocol=protocol,
        settings=settings,
        metric=task.metric,
        value=values[-1],
        train_value=score(task, features.train_labels, predict(layer, train, task)),
        extra={"best": values[best], "best_epoch": float(best + 1)}
        | score_with_ignored(task, features.test_labels, predictions),
        predictions=predictions,
    )


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Scale both by the mean and deviation of the training rows (and tokens) by channel.

    A channel that is constant there becomes zero.
    """
    rows = train.flatten(0, -2)
    mean, scale = rows.mean(0), rows.std(0)
    scale = scale.where(scale > 1e-6, torch.inf)
    return (train - mean) / scale, (test - mean) / scale


def _refuse_divergence(layer: nn.Module, epoch: int) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in layer.parameters()):
        raise TrainingError(
            f"expected finite weights, the probe diverged in epoch {epoch + 1}; "
            "lower probe.learning_rate, or set probe.standardise=true"
        )


@torch.no_grad()
def predict(layer: nn.Module, features: Tensor, task: Task) -> Array:
    """Labels or numbers that a probe predicts, ``(N,)``; token-wise ``(N, L)``."""
    outputs = layer(features)
    if task.kind.endswith("classification"):
        outputs = outputs.argmax(dim=-1)
    elif task.kind == "binary":
        outputs = (outputs.squeeze(1) > 0).long()
    else:
        outputs = outputs.squeeze(1)
    predictions: Array = outputs.numpy()
    return predictions


def _loss(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    if task.kind.endswith("classification"):
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    outputs = outputs.squeeze(1)
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    return F.mse_loss(outputs, targets.to(outputs.dtype))
