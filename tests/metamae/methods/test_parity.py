"""MetaMAE against a second implementation, written from its equations, one example at a time.

The reference shares no code with the package: it keeps tokens in their natural order, loops over
examples and heads, and takes the inner gradient with `torch.func.grad`. It reads the weights by
their names in the state dict. Losses and the gradient of every parameter have to agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from metamae.config.schema import Config
from metamae.config.sections import (
    AdaptationConfig,
    ContrastConfig,
    DecoderConfig,
    EncoderConfig,
    MaskingConfig,
)
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE

WIDTH, NARROW, HEADS, DEPTH = 16, 8, 2, 1
TEMPERATURE, WEIGHT, TASKS = 0.5, 0.7, 3
NET = "network."

SIGNAL = Signal(name="signal", channels=2, length=12, token_length=2)
IMAGE = Image(name="image", channels=2, height=4, width=6, patch=(2, 2))
ROW = Tabular(name="row", columns=6)
WORDS = Tokens(name="words", length=7, vocabulary=5)


@dataclass(frozen=True)
class Case:
    """One setting of the objective."""

    inputs: Inputs
    step_size: float
    steps: int = 1
    support_mean: Literal["task", "batch"] = "task"
    learned: Literal["none", "channel_step"] = "none"
    method: Literal["mae", "metamae"] = "metamae"
    weight: float = WEIGHT
    nearby_ratio: float = 0.5


CASES = {
    "signal": Case((SIGNAL,), 2.0),
    "signal, three steps": Case((SIGNAL,), 1.0, steps=3),
    "image": Case((IMAGE,), 3.0, support_mean="batch"),
    "words": Case((WORDS,), 2.0),
    "row, learned step sizes": Case((ROW,), 0.8, steps=2, learned="channel_step"),
    "image and words": Case((IMAGE, WORDS), 2.0, support_mean="batch"),
    "image and words, two steps": Case((IMAGE, WORDS), 2.0, steps=2),
}
SWITCHED = {
    f"{kind}: {name}": replace(Case(inputs, 2.0), **changes)
    for kind, inputs in {
        "signal": (SIGNAL,),
        "image": (IMAGE,),
        "words": (WORDS,),
        "row": (ROW,),
        "image and words": (IMAGE, WORDS),
    }.items()
    for name, changes in {
        "no inner step": {"method": "mae", "steps": 0, "weight": 0.0},
        "no contrast": {"weight": 0.0},
        "visible tokens alone": {"nearby_ratio": 0.0},
        "all nearby tokens": {"nearby_ratio": 1.0},
    }.items()
}

Weights = dict[str, Tensor]
Drawn = tuple[list[int], list[int]]  # visible tokens, and masked tokens drawn as nearby
Example = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = torch.einsum("ti,oi->to", x, w[name + ".weight"])
    return y + w[name + ".bias"] if name + ".bias" in w else y


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * w[name + ".weight"] + w[name + ".bias"]


def attention(w: Weights, name: str, x: Tensor) -> Tensor:
    width = x.shape[1]
    share = width // HEADS
    projected = linear(w, name + ".qkv", x)
    mixed = []
    for head in range(HEADS):
        query, key, value = (
            projected[:, part * width + head * share : part * width + (head + 1) * share]
            for part in range(3)
        )
        weights = torch.exp(torch.einsum("id,jd->ij", query, key) / math.sqrt(share))
        weights = weights / weights.sum(1, keepdim=True)
        mixed.append(torch.einsum("ij,jd->id", weights, value))
    return linear(w, name + ".out", torch.cat(mixed, dim=1))


def block(w: Weights, name: str, x: Tensor) -> Tensor:
    x = x + attention(w, name + ".attention", layer_norm(w, name + ".attention_norm", x))
    hidden = linear(w, name + ".mlp.0", layer_norm(w, name + ".mlp_norm", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(w, name + ".mlp.3", hidden)


def position(spec: InputSpec, token: int, width: int) -> Tensor:
    def wave(place: int, channels: int) -> list[float]:
        angles = [place / 10000 ** (2 * i / channels) for i in range(channels // 2)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    if isinstance(spec, Image):
        line, column = divmod(token, spec.width // spec.patch[1])
        values = wave(column, width // 2) + wave(line, width // 2)
    else:
        values = wave(token, width)
    return torch.tensor(np.array(values, np.float32)).double()  # positions are float32


def cut(spec: InputSpec, x: Tensor) -> list[Tensor]:
    """Raw tokens of one example, one value at a time."""
    match spec:
        case Signal():
            t = spec.token_length
            return [
                torch.stack([x[c, token * t + s] for s in range(t) for c in range(spec.channels)])
                for token in range(x.shape[1] // t)
            ]
        case Image():
            ph, pw = spec.patch
            return [
                torch.stack(
                    [
                        x[c, line * ph + i, column * pw + j]
                        for i in range(ph)
                        for j in range(pw)
                        for c in range(spec.channels)
                    ]
                )
                for line in range(x.shape[1] // ph)
                for column in range(x.shape[2] // pw)
            ]
        case Tabular():
            return [x[column].reshape(1) for column in range(len(x))]
        case Tokens():
            return [x[place] for place in range(len(x))]


def layout(inputs: Inputs) -> list[tuple[int, InputSpec, int]]:
    """(input number, specification, token within the input) of every token."""
    return [(n, spec, t) for n, spec in enumerate(inputs) for t in range(spec.tokens)]


def encode(w: Weights, inputs: Inputs, tokens: list[Tensor], visible: list[int]) -> Tensor:
    rows = [w[NET + "encoder.class_token"][0, 0]]
    for number, spec, place in (layout(inputs)[token] for token in visible):
        raw = tokens[sum(s.tokens for s in inputs[:number]) + place]
        name = f"{NET}tokenizer.embed.{number}"
        if isinstance(spec, Tokens):
            embedded = w[name + ".weight"][raw]
        else:
            embedded = linear(w, name, raw[None])[0]
        embedded = embedded + position(spec, place, WIDTH)
        if len(inputs) > 1:
            embedded = embedded + w[NET + "tokenizer.type_vectors"][number]
        rows.append(embedded)
    x = torch.stack(rows)
    for depth in range(DEPTH):
        x = block(w, f"{NET}encoder.blocks.{depth}", x)
    return layer_norm(w, NET + "encoder.norm", x)


def token_losses(
    w: Weights, inputs: Inputs, latent: Tensor, tokens: list[Tensor], visible: list[int]
) -> list[Tensor]:
    """Loss of every token of one example in natural order, whether visible or masked."""
    embedded = linear(w, NET + "decoder.embed", latent)
    rows = [embedded[0]]
    for token, (number, spec, place) in enumerate(layout(inputs)):
        content = (
            embedded[1 + visible.index(token)]
            if token in visible
            else w[NET + "decoder.mask_token"][0, 0]
        )
        content = content + position(spec, place, NARROW)
        if len(inputs) > 1:
            content = content + w[NET + "decoder.type_vectors"][number]
        rows.append(content)
    x = torch.stack(rows)
    for depth in range(DEPTH):
        x = block(w, f"{NET}decoder.blocks.{depth}", x)
    x = layer_norm(w, NET + "decoder.norm", x)
    losses = []
    for token, (number, spec, _) in enumerate(layout(inputs)):
        output = linear(w, f"{NET}heads.{number}", x[1 + token][None])[0]
        if isinstance(spec, Tokens):
            table = w[f"{NET}tokenizer.embed.{number}.weight"]
            scores = torch.einsum("vd,d->v", table, output)
            losses.append(torch.log(torch.exp(scores).sum()) - scores[tokens[token]])
        else:
            losses.append(((output - tokens[token]) ** 2).sum() / len(output))
    return losses


def mean_over_inputs(
    inputs: Inputs, losses: list[Tensor], counted: list[int], counts: list[float]
) -> Tensor:
    """Mean over inputs of the sum over an input's counted tokens, divided by its count."""
    numbers = [number for number, _, _ in layout(inputs)]
    parts = [
        sum((losses[t] for t in counted if numbers[t] == n), torch.zeros(()).double()) / counts[n]
        for n in range(len(inputs))
    ]
    return torch.stack(parts).sum() / len(inputs)


def counts_of(inputs: Inputs, counted: list[int]) -> list[float]:
    numbers = [number for number, _, _ in layout(inputs)]
    return [float(sum(numbers[t] == n for t in counted)) for n in range(len(inputs))]


def project(w: Weights, pooled: Tensor) -> Tensor:
    """Linear, batch norm by the statistics of this view, ReLU, Linear; rows of length one."""
    name = "meta.contrast.projector."
    hidden = linear(w, name + "0", pooled)
    centred = hidden - hidden.mean(0)
    hidden = centred / torch.sqrt((centred**2).mean(0) + 1e-5)
    hidden = hidden * w[name + "1.weight"] + w[name + "1.bias"]
    rows = linear(w, name + "3", torch.clamp(hidden, min=0))
    return rows / torch.sqrt((rows**2).sum(1, keepdim=True))


def nt_xent(first: Tensor, second: Tensor) -> Tensor:
    rows, total = torch.cat([first, second]), torch.zeros(()).double()
    for i in range(2 * TASKS):
        scores = [torch.exp((rows[i] * rows[k]).sum() / TEMPERATURE) for k in range(2 * TASKS)]
        others = sum(score for k, score in enumerate(scores) if k != i)
        total = total - torch.log(scores[(i + TASKS) % (2 * TASKS)] / others)
    return total / (2 * TASKS)


def reference(w: Weights, case: Case, examples: list[Example], drawn: list[Drawn]) -> Tensor:
    """The whole objective."""
    inputs = case.inputs
    supports = [counts_of(inputs, visible + nearby) for visible, nearby in drawn]
    batch_mean = [sum(column) / TASKS for column in zip(*supports, strict=True)]
    queries, amortised, refined = [], [], []
    for example, (visible, nearby), own in zip(examples, drawn, supports, strict=True):
        tokens = [token for spec in inputs for token in cut(spec, example[spec.name])]
        counts = own if case.support_mean == "task" else batch_mean

        def inner(
            latent: Tensor,
            tokens: list[Tensor] = tokens,
            visible: list[int] = visible,
            counted: list[int] = visible + nearby,
            counts: list[float] = counts,
        ) -> Tensor:
            losses = token_losses(w, inputs, latent, tokens, visible)
            return mean_over_inputs(inputs, losses, counted, counts)

        latent = encode(w, inputs, tokens, visible)
        amortised.append(latent[1:].mean(0))
        for step in range(case.steps):
            size = (
                case.step_size
                if case.learned == "none"
                else torch.exp(w["meta.adapter.step_size.log_value.0"][step])
            )
            latent = latent - size * torch.func.grad(inner)(latent)
        refined.append(latent[1:].mean(0))
        masked = [token for token in range(len(tokens)) if token not in visible]
        losses = token_losses(w, inputs, latent, tokens, visible)
        queries.append(mean_over_inputs(inputs, losses, masked, counts_of(inputs, masked)))
    if case.weight == 0:
        return torch.stack(queries).mean()
    contrast = nt_xent(project(w, torch.stack(amortised)), project(w, torch.stack(refined)))
    return torch.stack(queries).mean() + case.weight * contrast


def method_of(case: Case, differentiation: Literal["unrolled", "first_order"] = "unrolled") -> MAE:
    """Our implementation, float64, away from zero biases and unit norms."""
    config = Config(
        dataset="test",
        method=case.method,
        encoder=EncoderConfig(width=WIDTH, depth=DEPTH, heads=HEADS),
        decoder=DecoderConfig(width=NARROW, depth=DEPTH, heads=HEADS),
        masking=MaskingConfig(mask_ratio=0.5, nearby_ratio=case.nearby_ratio),
        adaptation=AdaptationConfig(
            step_size=case.step_size,
            steps=max(case.steps, 1),
            differentiation=differentiation,
            learned=case.learned,
            support_mean=case.support_mean,
        ),
        contrast=ContrastConfig(weight=case.weight, temperature=TEMPERATURE, hidden=12, out=6),
    )
    method = build_method(config, case.inputs).double()
    assert isinstance(method, MAE)
    assert isinstance(method, MetaMAE) is (case.method == "metamae")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).double())
    return method


def batch_of(inputs: Inputs) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    whole = {
        "signal": torch.randn(TASKS, 2, 12, generator=generator).double(),
        "image": torch.randn(TASKS, 2, 4, 6, generator=generator).double(),
        "row": torch.randn(TASKS, 6, generator=generator).double(),
        "words": torch.randint(5, (TASKS, 7), generator=generator),
    }
    return {spec.name: whole[spec.name] for spec in inputs}


def gradients_of(method: MAE, loss: Tensor) -> Weights:
    names, parameters = zip(*method.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def both(case: Case, seed: int) -> tuple[list[Drawn], Weights]:
    """Compare loss and gradients with the reference; what was drawn, and the gradients."""
    method, batch = method_of(case), batch_of(case.inputs)
    split = method.draw(TASKS, torch.Generator().manual_seed(seed))
    nearby = [query[drawn] for query, drawn in zip(split.query_idx, split.nearby, strict=True)]
    drawn = [
        (visible.tolist(), drawn.tolist())
        for visible, drawn in zip(split.support_idx, nearby, strict=True)
    ]
    examples = [{key: x[b] for key, x in batch.items()} for b in range(TASKS)]
    weights = {key: value.detach().clone() for key, value in method.named_parameters()}
    expected_gradients, expected = torch.func.grad_and_value(reference)(
        weights, case, examples, drawn
    )
    result = method(batch, split)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    ours = gradients_of(method, result.loss)
    for key, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        assert scale > 1e-6, key  # nothing is compared with nothing
        assert (ours[key] - gradient).abs().max().item() <= 1e-9 * scale, key
    return drawn, expected_gradients


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_the_reference(name: str) -> None:
    """To 1e-9 of each parameter's largest gradient, in float64."""
    case = CASES[name]
    drawn, gradients = both(case, seed=3)
    # Unequal counts: otherwise the two support means could not be told apart.
    assert len({len(near) for _, near in drawn}) > 1

    # The comparison would notice a missing second-order term: it is no small part here.
    first_order, batch = method_of(case, "first_order"), batch_of(case.inputs)
    split = first_order.draw(TASKS, torch.Generator().manual_seed(3))
    partial = gradients_of(first_order, first_order(batch, split).loss)
    shares = [
        ((partial[key] - gradient).norm() / gradient.norm()).item()
        for key, gradient in gradients.items()
        if not key.startswith("meta.")
    ]
    assert min(shares) > 1e-4
    assert max(shares) > 1e-2


@pytest.mark.parametrize("name", SWITCHED)
def test_every_ablation_equals_the_reference(name: str) -> None:
    """Each component off, and both ends of the nearby ratio, for every kind of input."""
    case = SWITCHED[name]
    drawn, _ = both(case, seed=1)
    for visible, nearby in drawn:
        beside = {
            token
            for token in range(sum(spec.tokens for spec in case.inputs))
            if token not in visible and any(touch(case.inputs, token, v) for v in visible)
        }
        assert set(nearby) <= beside
        if case.nearby_ratio in (0.0, 1.0):
            assert set(nearby) == (beside if case.nearby_ratio else set())


def touch(inputs: Inputs, one: int, other: int) -> bool:
    """Whether two tokens are neighbours: one step apart on the grid of one input."""
    (number, spec, place), (second, _, target) = (layout(inputs)[token] for token in (one, other))
    if number != second:
        return False
    if isinstance(spec, Image):
        columns = spec.width // spec.patch[1]
        (a, b), (c, d) = divmod(place, columns), divmod(target, columns)
        return abs(a - c) + abs(b - d) == 1
    return abs(place - target) == 1
