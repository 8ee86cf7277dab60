"""How well one candidate does with every number of labels: one value a draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metalearn.randomness import fold
from metamae.config.schema import Config
from metamae.data.dataset import Array, Dataset
from metamae.evaluation.candidates import Candidate
from metamae.evaluation.drawing import Draw, Drawing, Stage
from metamae.evaluation.features import Features
from metamae.evaluation.learners import LEARNERS, Lesson
from metamae.evaluation.metrics import score
from metamae.evaluation.scratch import learn_from_scratch
from metamae.evaluation.tuned import Scaler


@dataclass(frozen=True)
class FrozenCurve:
    """A learner on features that stay as they are.

    Attributes:
        candidate: The candidate.
        features: Features and labels of training and test rows.
        drawing: The draws.
        scaled: Whether the features' relative sizes mean something, as components' do: they are
            kept then; everything else is standardised.
    """

    candidate: Candidate
    features: Features
    drawing: Drawing
    scaled: bool = False

    def predict(self, draw: Draw, number: int) -> Array:
        """Predictions of what a draw is judged by."""
        task, train = self.features.task, self._train
        labels, groups = self.features.train_labels, self.features.groups
        classes = max(1, self.drawing.classes)
        lesson = Lesson(
            task=task,
            features=train[draw.rows],
            labels=labels[draw.rows],
            groups=None if groups is None else groups[draw.rows],
            judged=self._test if draw.held is None else train[draw.held],
            scaler=self._scaler,
            per_class=len(draw.rows) / classes,
            seed=fold(self.drawing.seed, "learner", number),
        )
        return LEARNERS[self.candidate.learner](lesson)

    @cached_property
    def _train(self) -> Array:
        return np.asarray(self.features.train.numpy(), np.float64)

    @cached_property
    def _test(self) -> Array:
        return np.asarray(self.features.test.numpy(), np.float64)

    @cached_property
    def _scaler(self) -> Scaler:
        if self.scaled or self.candidate.representation == "components":
            width = self._train.shape[1]
            return Scaler(np.zeros(width), np.ones(width))
        return Scaler.of(self._train)


@dataclass(frozen=True)
class ScratchCurve:
    """A network trained anew on the labels of every draw."""

    config: Config
    dataset: Dataset
    drawing: Drawing

    def predict(self, draw: Draw, number: int) -> Array:
        """Predictions of what a draw is judged by."""
        judged = self.dataset.need("test" if draw.held is None else "train")
        seed = fold(self.drawing.seed, "network", number)
        return learn_from_scratch(
            self.config, self.dataset, draw.rows, judged, draw.held, seed=seed
        )


Curve = FrozenCurve | ScratchCurve


def most_draws(curve: Curve) -> int:
    """Draws that a curve takes at most: the first quarter where learning is dear."""
    dear = isinstance(curve, ScratchCurve) or curve.candidate.learner == "trees"
    return curve.drawing.few if dear else curve.drawing.draws


def measure(
    curve: Curve, dataset: Dataset, stage: Stage, numbers: Iterable[int]
) -> Iterator[tuple[int, list[float]]]:
    """The task's metric, draw by draw, for one number of labels after the other.

    Args:
        curve: What is measured.
        dataset: Where the true labels are.
        stage: On validation cuts of the training rows, or on the test rows.
        numbers: Numbers of labels.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.evaluation.candidates import CANDIDATES, plain_features
        >>> from metamae.evaluation.drawing import Drawing
        >>> from metamae.evaluation.label_curve import FrozenCurve, measure
        >>> data = load_dataset("basic_motions")
        >>> features = plain_features("field", data)
        >>> drawing = Drawing(data.task, features.train_labels, draws=3)
        >>> curve = FrozenCurve(CANDIDATES["field"], features, drawing)
        >>> [(number, len(values)) for number, values in measure(curve, data, "test", [1, 5])]
        [(1, 3), (5, 3)]
    """
    task, drawing = dataset.need_task(), curve.drawing
    truth = {part: dataset.need(part).labels for part in ("train", "test")}
    for number in numbers:
        values = []
        for index in range(min(drawing.count(number, stage), most_draws(curve))):
            draw = drawing.draw(number, stage, index)
            labels = truth["test"] if draw.held is None else truth["train"]
            assert labels is not None
            expected = labels if draw.held is None else labels[draw.held]
            values.append(score(task, expected, curve.predict(draw, number)))
        yield number, values
