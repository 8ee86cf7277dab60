"""Every baseline against a second computation written from its equations, and its traps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamae import load_dataset, make_config
from metamae.config.baselines import BaselineConfig, CapriConfig, EMixConfig
from metamae.config.names import METHODS
from metamae.config.schema import Config
from metamae.config.sections import EncoderConfig
from metamae.data.dataset import Partition, Task, labelled_batch
from metamae.errors import ConfigError, DataError, InputError
from metamae.evaluation.features import extract_features
from metamae.inputs import Image, Inputs, LabelledBatch, Signal, Tabular, Tokens, to_device
from metamae.methods.baselines.capri import Capri
from metamae.methods.baselines.corruption import Corrupter, Corruption, corrupted_count, zeroed
from metamae.methods.baselines.emix import EMix, Mixing, mixing_loss
from metamae.methods.baselines.mae_linear import LinearMAE
from metamae.methods.baselines.shed import ShED, shifted
from metamae.methods.baselines.supervised import Supervised, stored_task
from metamae.methods.building import BASELINES, build_baseline, build_method
from metamae.methods.method import Method
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import CHECKPOINT, HISTORY, load_method, read_history
from tests.tiny import FIRST_NINE, SIZES

SIGNAL = Signal(name="signal", channels=2, length=16, token_length=2)
IMAGE = Image(name="image", channels=1, height=4, width=6, patch=(2, 2))
ROW = Tabular(name="row", columns=9)
WORDS = Tokens(name="words", length=7, vocabulary=5)
KINDS: dict[str, Inputs] = {
    "signal": (SIGNAL,),
    "image": (IMAGE,),
    "row": (ROW,),
    "words": (WORDS,),
    "image and words": (IMAGE, WORDS),
}
WIDTH = 16
CLASSES = Task(kind="classification", metric="accuracy", classes=("a", "b", "c"))
TASKS = {
    "classification": CLASSES,
    "binary": Task(kind="binary", metric="accuracy", classes=("no", "yes")),
    "regression": Task(kind="regression", metric="spearman"),
}
TINY = [
    *SIZES,
    *(
        "training.batch_size=8",
        "training.log_every=1",
    ),
]


def config_of(method: str, **baseline: Any) -> Config:
    return Config(
        dataset="test",
        method=method,
        encoder=EncoderConfig(width=WIDTH, depth=1, heads=2),
        baseline=BaselineConfig(**({"corruption": 0.4} | baseline)),
    )


def built(method: str, inputs: Inputs, task: Task = CLASSES, **baseline: Any) -> Method[Any]:
    """In float64, with perturbed weights."""
    result = build_method(config_of(method, **baseline), inputs, task).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).double())
    return result


def batch_of(inputs: Inputs, examples: int = 4, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Tensor] = {}
    for spec in inputs:
        if isinstance(spec, Tokens):
            shape = (examples, spec.length)
            batch[spec.name] = torch.randint(spec.vocabulary, shape, generator=generator)
        else:
            tokens = torch.randn(examples, spec.tokens, spec.values, generator=generator)
            batch[spec.name] = spec.unpatchify(tokens.to(dtype))
    return LabelledBatch(batch, torch.arange(examples) % 2)


def draw(method: Method[Any], examples: int = 4, seed: int = 0) -> Any:
    return method.draw(examples, torch.Generator().manual_seed(seed))


def close(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


# --- the second computations: one example, one token, one number at a time --------------------


def contents_of(method: Method[Any], batch: dict[str, Tensor], example: int) -> list[Tensor]:
    """Embeddings without positions, from the weights."""
    rows = []
    for number, spec in enumerate(method.network.inputs):
        layer = method.network.tokenizer.embed[number]
        for token in spec.patchify(batch[spec.name])[example]:
            if isinstance(spec, Tokens):
                rows.append(layer.weight[token])
            else:
                rows.append((layer.weight * token).sum(1) + layer.bias)
    return rows


def outputs_of(method: Method[Any], contents: list[Tensor]) -> Tensor:
    """Encoder outputs (L, D) of contents that get their places here."""
    inputs, tokenizer = method.network.inputs, method.network.tokenizer
    places = [
        tokenizer.get_buffer(f"positions_{n}")[t].double()
        + (0 if tokenizer.type_vectors is None else tokenizer.type_vectors[n])
        for n, spec in enumerate(inputs)
        for t in range(spec.tokens)
    ]
    placed = torch.stack([c + p for c, p in zip(contents, places, strict=True)])
    output: Tensor = method.network.encoder(placed[None])[0, 1:]
    return output


def log_softmax_at(scores: list[Tensor], place: int) -> Tensor:
    top = max(float(s.detach()) for s in scores)
    total = sum((torch.exp(s - top) for s in scores), torch.zeros(()).double())
    return scores[place] - top - torch.log(total)


def emix_reference(method: Method[Any], batch: Any, drawn: Mixing) -> Tensor:
    assert isinstance(method, EMix)
    size, tau = len(drawn), method.config.temperature
    contents = [contents_of(method, batch, b) for b in range(size)]

    def represent(rows: list[Tensor]) -> Tensor:
        pooled = outputs_of(method, rows).sum(0) / len(rows)
        norm, linear = method.head[0], method.head[1]
        centred = pooled - pooled.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + 1e-5) * norm.weight + norm.bias
        vector = linear.weight @ scaled + linear.bias
        return vector / torch.sqrt((vector**2).sum())

    plain = [represent(rows) for rows in contents]
    own, other, shares = [], [], []
    for b in range(size):
        share, partner = drawn.share[b].double(), int(drawn.partner[b])
        rows = [
            share * mine + (1 - share) * theirs.detach()
            for mine, theirs in zip(contents[b], contents[partner], strict=True)
        ]
        mixture = represent(rows)
        scores = [(mixture * p).sum() / tau for p in plain]
        own.append(-log_softmax_at(scores, b))
        other.append(-log_softmax_at(scores, partner))
        shares.append(share)
    if method.config.weighting == "as_published":
        # (B, 1, B): every share meets every loss.
        parts = [s * o + (1 - s) * t for s in shares for o, t in zip(own, other, strict=True)]
    else:
        parts = [s * o + (1 - s) * t for s, o, t in zip(shares, own, other, strict=True)]
    return torch.stack(parts).mean()


def by_input(method: Any, index: Tensor) -> list[list[int]]:
    """Drawn tokens of one example, input after input."""
    return [part.tolist() for part in index.split(method.corrupter.counts)]


def shed_reference(method: Method[Any], batch: Any, drawn: Corruption) -> Tensor:
    assert isinstance(method, ShED)
    losses = []
    for b in range(len(drawn)):
        contents = contents_of(method, batch, b)
        moved = list(contents)
        for group in by_input(method, drawn.index[b]):
            for place, token in enumerate(group):
                moved[group[(place + 1) % len(group)]] = contents[token]
        hidden = outputs_of(method, moved)
        for token in range(len(contents)):
            scores = list(method.head.weight @ hidden[token] + method.head.bias)
            losses.append(-log_softmax_at(scores, int(token in drawn.index[b].tolist())))
    return torch.stack(losses).mean()


def capri_reference(method: Method[Any], batch: Any, drawn: Corruption) -> Tensor:
    assert isinstance(method, Capri)
    config, losses = method.config, []
    for b in range(len(drawn)):
        contents, masked = contents_of(method, batch, b), drawn.index[b].tolist()
        hidden = outputs_of(method, [0 * c if t in masked else c for t, c in enumerate(contents)])
        used = masked if config.positions == "masked" else range(len(contents))
        predictions = [method.head.weight @ hidden[t] + method.head.bias for t in used]
        answers = [contents[t] for t in used]
        if config.normalise:
            predictions, answers = (
                [v / torch.sqrt((v**2).sum()) for v in vectors]
                for vectors in (predictions, answers)
            )
        scores = [[(p * e).sum() / config.temperature for e in answers] for p in predictions]
        for i in range(len(answers)):
            row = -log_softmax_at(scores[i], i)
            column = -log_softmax_at([line[i] for line in scores], i)
            losses.append((row + column) / 2 if config.symmetric else row)
    return torch.stack(losses).mean()


def linear_reference(method: Method[Any], batch: Any, drawn: Corruption) -> Tensor:
    assert isinstance(method, LinearMAE)
    inputs = method.network.inputs
    losses: list[list[Tensor]] = [[] for _ in inputs]
    for b in range(len(drawn)):
        contents, masked = contents_of(method, batch, b), drawn.index[b].tolist()
        hidden = outputs_of(method, [0 * c if t in masked else c for t, c in enumerate(contents)])
        offset = 0
        for number, spec in enumerate(inputs):
            raw = spec.patchify(batch[spec.name])[b]
            for token in (t for t in masked if offset <= t < offset + spec.tokens):
                truth = raw[token - offset]
                if isinstance(spec, Tokens):
                    table = method.network.tokenizer.embed[number].weight
                    scores = [(row * hidden[token]).sum() for row in table]
                    losses[number].append(-log_softmax_at(scores, int(truth)))
                    continue
                layer = method.heads[number][1]
                error = layer.weight @ hidden[token].clamp(min=0) + layer.bias - truth
                squared = (error**2).sum()
                norm = method.reconstruction == "norm"
                losses[number].append(torch.sqrt(squared) if norm else squared / len(error))
            offset += spec.tokens
    return torch.stack([torch.stack(part).mean() for part in losses]).mean()


def supervised_reference(method: Method[Any], batch: Any, drawn: Any) -> Tensor:
    assert isinstance(method, Supervised)
    losses = []
    for b in range(len(drawn)):
        contents = contents_of(method, batch, b)
        pooled = outputs_of(method, contents).sum(0) / len(contents)
        scores = list(method.head.weight @ pooled + method.head.bias)
        label = batch.labels[b]
        if method.task_kind == "classification":
            losses.append(-log_softmax_at(scores, int(label)))
        elif method.task_kind == "binary":
            losses.append(torch.log(1 + torch.exp(scores[0] if label == 0 else -scores[0])))
        else:
            losses.append((scores[0] - label) ** 2)
    return torch.stack(losses).mean()


REFERENCES = {
    "emix": emix_reference,
    "shed": shed_reference,
    "capri": capri_reference,
    "mae_linear": linear_reference,
    "supervised": supervised_reference,
}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("emix", {}),
    ("emix", {"emix": EMixConfig(weighting="as_published", alpha=0.5, temperature=0.7, out=6)}),
    ("shed", {}),
    ("shed", {"corruption": 0.05}),
    ("capri", {}),
    ("capri", {"capri": CapriConfig(positions="masked", temperature=0.5)}),
    ("capri", {"capri": CapriConfig(symmetric=True, temperature=0.5)}),
    ("capri", {"capri": CapriConfig(normalise=True, symmetric=True, positions="masked")}),
    ("mae_linear", {}),
    ("mae_linear", {"reconstruction": "squared"}),
    ("supervised", {"task": CLASSES}),
    ("supervised", {"task": TASKS["binary"]}),
    ("supervised", {"task": TASKS["regression"]}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "given_settings"), SETTINGS, ids=str)
def test_loss_and_every_gradient_equal_the_reference(
    name: str, given_settings: dict[str, Any], kind: str
) -> None:
    """To 1e-9 in float64, for all kinds of inputs."""
    inputs = KINDS[kind]
    method, batch = built(name, inputs, **given_settings), batch_of(inputs)
    drawn = draw(method, seed=3)
    losses = method(batch, drawn).loss, REFERENCES[name](method, batch, drawn)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
    names, parameters = zip(*method.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in losses)
    for key, one, other in zip(names, ours, theirs, strict=True):
        scale = other.abs().max().item()
        assert scale > 1e-9, key  # nothing is compared with nothing, nothing is left untrained
        assert (one - other).abs().max().item() <= 1e-9 * scale, key


# --- draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "rate", "count"),
    [
        *((64, 0.85, 55), (28, 0.5, 14), (250, 0.5, 125), (128, 0.15, 20), (196, 0.85, 167)),
        *((64, 0.15, 10), (228, 0.5, 114), (140, 0.15, 21), (30, 0.1, 3), (100, 0.07, 7)),
    ],
)
def test_corrupted_tokens_are_counted_exactly(tokens: int, rate: float, count: int) -> None:
    """As many as MetaMAE masks at the paper's ratios; products like 100 * 0.07 do not round up."""
    assert corrupted_count(tokens, rate) == count


@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    rate=st.floats(0.01, 0.99),
    examples=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_every_input_gets_its_own_share_of_distinct_tokens(
    lengths: list[int], rate: float, examples: int, seed: int
) -> None:
    inputs = tuple(Tabular(name=f"row{n}", columns=length) for n, length in enumerate(lengths))
    corrupter = Corrupter(inputs, rate, least=2)
    drawn = corrupter.draw(examples, torch.Generator().manual_seed(seed))
    again = corrupter.draw(examples, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn.index, again.index)
    assert len(drawn) == examples
    offset = 0
    for length, part in zip(lengths, drawn.index.split(corrupter.counts, 1), strict=True):
        assert part.shape[1] == max(2, corrupted_count(length, rate)) <= length
        assert offset <= int(part.min())
        assert int(part.max()) < offset + length
        assert all(len(set(row.tolist())) == len(row) for row in part)
        offset += length


@given(seed=st.integers(0, 2**32), examples=st.integers(1, 4), rate=st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_shed_moves_every_drawn_token_and_no_other(seed: int, examples: int, rate: float) -> None:
    """A permutation inside each input, without fixed points among the drawn."""
    inputs = (Tabular(name="a", columns=6), Tabular(name="b", columns=3))
    corrupter = Corrupter(inputs, rate, least=2)
    drawn = corrupter.draw(examples, torch.Generator().manual_seed(seed))
    names = torch.arange(9.0).expand(examples, 9)
    moved = shifted(names.unsqueeze(-1), drawn, corrupter.counts).squeeze(-1)
    assert torch.equal(moved.sort(1).values, names)
    assert torch.equal(moved[:, :6].sort(1).values, names[:, :6])
    changed = torch.zeros(examples, 9, dtype=torch.bool).scatter(1, drawn.index, True)
    assert torch.equal(moved != names, changed)


def test_drawn_tokens_are_uniform() -> None:
    corrupter = Corrupter((ROW,), rate=1 / 3)
    index = corrupter.draw(3000, torch.Generator().manual_seed(0)).index
    share = torch.bincount(index.flatten(), minlength=9) / 3000
    assert (share - 1 / 3).abs().max() < 0.04


@pytest.mark.parametrize(("alpha", "mean"), [(1.0, 0.75), (0.2, 0.9018), (8.0, 0.5976)])
def test_shares_of_mixtures_follow_a_folded_beta(alpha: float, mean: float) -> None:
    """The mean of max(l, 1 - l), by numerical integration; never below one half."""
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    log_density = (alpha - 1) * (torch.log(grid) + torch.log(1 - grid))
    density = torch.exp(log_density) / torch.exp(log_density).sum()
    exact = float((density * torch.maximum(grid, 1 - grid)).sum())
    assert exact == pytest.approx(mean, abs=2e-2 if alpha < 1 else 1e-3)
    method = built("emix", (ROW,), emix=EMixConfig(alpha=alpha))
    drawn = draw(method, 20_000)
    assert drawn.share.dtype == torch.float32
    assert float(drawn.share.min()) >= 0.5
    assert float(drawn.share.max()) <= 1.0
    assert float(drawn.share.mean()) == pytest.approx(exact, abs=2e-2 if alpha < 1 else 5e-3)
    assert torch.equal(drawn.partner.sort().values, torch.arange(20_000))


@pytest.mark.parametrize("name", METHODS)
def test_a_draw_is_a_function_of_its_generator_alone(name: str) -> None:
    """And leaves the global generator alone; another seed draws something else."""
    method = built(name, (SIGNAL,))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = draw(method, seed=7)
    torch.manual_seed(1)
    drawn = (one, draw(method, seed=7), draw(method, seed=8), one.to("cpu"))
    first, same, other, moved = (
        [x for x in vars(d).values() if isinstance(x, Tensor)] for d in drawn
    )
    assert type(drawn[3]) is type(one)
    for a, b, c in zip(first, same, moved, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert (name in ("lfr", "supervised")) is (not first)
    assert not first or any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


# --- what the losses mean ----------------------------------------------------------------------


def test_emix_weights_every_example_unless_asked_for_the_broadcast() -> None:
    """Examples that are matched well have large shares here: the two weightings differ."""
    share = torch.tensor([1.0, 0.5], dtype=torch.float64)
    drawn = Mixing(share, torch.tensor([1, 0]))
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    plain = torch.eye(2, dtype=torch.float64)
    near, far = math.log(1 + math.exp(-5)), math.log(1 + math.exp(5))  # temperature 0.2
    own, other = (near, far), (far, near)
    per_example = (own[0] + 0.5 * own[1] + 0.5 * other[1]) / 2
    published = 0.75 * sum(own) / 2 + 0.25 * sum(other) / 2
    found = mixing_loss(mixed, plain, drawn, EMixConfig()).item()
    assert found == pytest.approx(per_example, rel=1e-12)
    found = mixing_loss(mixed, plain, drawn, EMixConfig(weighting="as_published")).item()
    assert found == pytest.approx(published, rel=1e-12)
    assert abs(published - per_example) > 0.5


def test_zeroed_tokens_keep_their_places() -> None:
    """Two zeroed tokens differ by their positions alone, and others are untouched."""
    method = built("mae_linear", (SIGNAL,))
    batch, tokenizer = batch_of((SIGNAL,)), method.network.tokenizer
    drawn = Corruption(torch.tensor([[2, 5]] * 4))
    placed = tokenizer.place(zeroed(tokenizer.contents(batch), drawn), batch)
    positions = tokenizer.get_buffer("positions_0").double()
    close(placed[:, [2, 5]], positions[[2, 5]].expand(4, -1, -1))
    kept = [0, 1, 3, 4, 6, 7]
    assert torch.equal(placed[:, kept], tokenizer(batch)[:, kept])


@pytest.mark.parametrize("kind", KINDS)
def test_place_of_contents_is_the_tokenizer(kind: str) -> None:
    method, batch = built("emix", KINDS[kind]), batch_of(KINDS[kind])
    tokenizer = method.network.tokenizer
    assert torch.equal(tokenizer.place(tokenizer.contents(batch), batch), tokenizer(batch))


def test_a_perfect_prediction_has_a_gradient() -> None:
    """The norm has none at zero: it must be 0 there, not NaN."""
    method = LinearMAE(built("mae_linear", (ROW,)).network, WIDTH, 0.5)
    target = torch.ones(2, 3, 4)
    prediction = target.clone().requires_grad_()
    method._loss(prediction, target).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.zeros_like(target))


def test_masked_values_do_not_reach_the_prediction() -> None:
    """Changing a masked token changes its target, not the encoder's view."""
    method, batch = built("mae_linear", (ROW,), reconstruction="squared"), batch_of((ROW,))
    method.corrupter = Corrupter((ROW,), 0.05)
    drawn = Corruption(torch.tensor([[4]] * 4))
    losses = []
    for change in (0.0, 1.0, 2.0):
        row = batch["row"].clone()
        row[:, 4] += change
        losses.append(method({"row": row}, drawn).loss.item())
    # (p - x - c)^2 is a parabola in c only if p does not depend on c.
    assert losses[2] - 2 * losses[1] + losses[0] == pytest.approx(2.0, rel=1e-9)


# --- contract ----------------------------------------------------------------------------------


@given(
    name=st.sampled_from(METHODS),
    kind=st.sampled_from(["signal", "image", "row", "words", "image and words"]),
    size=st.integers(2, 5),
    examples=st.integers(2, 4),
    rate=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_method_takes_every_shape(
    name: str, kind: str, size: int, examples: int, rate: float, seed: int
) -> None:
    """Finite loss, finite gradients, features of the encoder's width."""
    specs: dict[str, Any] = {
        "signal": Signal(name="signal", channels=size, length=4 * size, token_length=2),
        "image": Image(name="image", channels=1, height=2 * size, width=6, patch=(2, 3)),
        "row": Tabular(name="row", columns=size + 1),
        "words": Tokens(name="words", length=size + 1, vocabulary=size),
    }
    inputs = tuple(specs[part] for part in kind.split(" and "))
    method = build_method(config_of(name, corruption=rate), inputs, CLASSES)
    batch = batch_of(inputs, examples, torch.float32)
    result = method(batch, draw(method, examples, seed))
    assert result.loss.shape == ()
    assert result.loss.isfinite()
    result.loss.backward()
    learned = method if name == "gon" else method.network.encoder  # which gon is without
    for parameter in learned.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert method.features(batch).shape == (examples, WIDTH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASELINES)
def test_autocast_to_bfloat16_trains_on_float32_losses(name: str, kind: str) -> None:
    inputs = KINDS[kind]
    method, batch = built(name, inputs).float(), batch_of(inputs, dtype=torch.float32)
    drawn = draw(method)
    expected = method(batch, drawn).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch, drawn).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.05)
    assert loss.item() != expected
    loss.backward()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("kind", KINDS)
def test_methods_of_a_seed_share_the_initial_encoder(kind: str) -> None:
    """Bit for bit: a comparison of methods is one of objectives. One has no encoder."""
    names = [name for name in METHODS if name != "gon"]
    methods = [build_method(config_of(name), KINDS[kind], CLASSES) for name in names]
    keys = [k for k in methods[0].state_dict() if k.startswith(("network.t", "network.e"))]
    assert any("encoder" in key for key in keys)
    assert any("tokenizer" in key for key in keys)
    for method in methods[1:]:
        state = method.state_dict()
        assert all(torch.equal(state[key], methods[0].state_dict()[key]) for key in keys)


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_or_draw_that_does_not_fit_is_named(name: str) -> None:
    method = built(name, (SIGNAL,))
    drawn = draw(method)
    with pytest.raises(InputError, match=r"got \['sound'\]"):
        method({"sound": torch.zeros(4, 2, 16)}, drawn)
    with pytest.raises(InputError, match=r"token grid \(8,\), got \(9,\)"):
        method({"signal": torch.zeros(4, 2, 18)}, drawn)
    with pytest.raises(InputError, match="a draw for 3 examples, as in the batch, got one for 4"):
        method({"signal": torch.zeros(3, 2, 16)}, drawn)


def test_settings_that_cannot_work_are_refused() -> None:
    single = (Tabular(name="row", columns=1),)
    with pytest.raises(ConfigError, match="at least 2 tokens in input 'row' for this method"):
        built("shed", single)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        built("capri", single, capri=CapriConfig(positions="masked"))
    with pytest.raises(ConfigError, match=r"batch_size >= 2 for emix.*got 1"):
        draw(built("emix", (ROW,)), 1)
    with pytest.raises(ConfigError, match="expected a task for method supervised"):
        build_method(config_of("supervised"), (ROW,))
    with pytest.raises(ConfigError, match=r"expected a baseline among emix, .*got 'mae'"):
        build_baseline(config_of("mae"), (ROW,))


@pytest.mark.parametrize(
    "override",
    [
        *("baseline.corruption=0", "baseline.corruption=1", "baseline.emix.alpha=0"),
        *("baseline.emix.temperature=0", "baseline.emix.out=0", "baseline.capri.temperature=-1"),
        *("baseline.emix.weighting=published", "baseline.capri.positions=visible"),
        *("baseline.reconstruction=cubed", "baseline.capri.symmetric=1"),
    ],
)
def test_impossible_settings_are_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        make_config("sensors", overrides=[override])


# --- labels ------------------------------------------------------------------------------------


def test_labels_travel_beside_the_inputs() -> None:
    data = load_dataset("digits")
    batch = labelled_batch(data.train, [3, 1])
    assert list(batch) == ["image"]
    assert data.train.labels is not None
    assert batch.labels.tolist() == data.train.labels[[3, 1]].tolist()
    assert batch.labels.dtype == torch.int64
    moved = to_device(batch, "cpu")
    assert isinstance(moved, LabelledBatch)
    assert torch.equal(moved.labels, batch.labels)
    assert type(to_device(dict(batch), "cpu")) is dict
    with pytest.raises(DataError, match="without labels"):
        labelled_batch(replace(data.train, labels=None), [0])


def test_labels_that_are_not_finite_name_their_row() -> None:
    inputs = (Tabular(name="row", columns=2),)
    labels = np.array([0.5, np.nan, 1.0])
    data = Partition({"row": np.zeros((3, 2), np.float32)}, inputs, labels=labels)
    assert labelled_batch(data, [2, 0]).labels.tolist() == [1.0, 0.5]
    assert labelled_batch(data, [2]).labels.dtype == torch.float32
    with pytest.raises(DataError, match="finite values in input 'labels', got nan in row 1"):
        labelled_batch(data, torch.tensor([0, 1]))


def test_supervised_wants_one_label_an_example() -> None:
    method = built("supervised", (ROW,))
    batch = batch_of((ROW,))
    with pytest.raises(InputError, match=r"labels \(4,\), got none"):
        method(dict(batch), draw(method))
    with pytest.raises(InputError, match=r"got \(3,\)"):
        method(LabelledBatch(batch, batch.labels[:3]), draw(method))


def test_supervised_on_tokens_reads_the_features_of_tokens() -> None:
    """One class per token: the mean cross-entropy over all tokens of all examples."""
    task: Any = SimpleNamespace(kind="token_classification", outputs=3)
    method = Supervised(built("supervised", (WORDS,)).network, WIDTH, task).double()
    batch = batch_of((WORDS,))
    labels = torch.arange(4 * 7).reshape(4, 7) % 3
    found = method(LabelledBatch(batch, labels), draw(method)).loss
    features = method.network.token_features(batch)
    scores = features @ method.head.weight.T + method.head.bias
    rows = [
        -log_softmax_at(list(scores[b, t]), int(labels[b, t])) for b in range(4) for t in range(7)
    ]
    close(found, torch.stack(rows).mean())
    with pytest.raises(InputError, match=r"labels \(4, 7\), got \(4,\)"):
        method(batch, draw(method))


class _Forbidden(Partition):
    """Examples that must not be looked at."""

    def batch(self, index: Any) -> dict[str, Tensor]:
        raise AssertionError("read")


@pytest.mark.parametrize("name", METHODS)
def test_no_method_reads_the_test_rows(name: str, tmp_path: Path) -> None:
    """Supervised reads the labelled training rows alone, the others the unlabelled ones alone."""
    data = load_dataset("basic_motions")
    forbidden = {"test", "pretrain" if name == "supervised" else "train"}
    hidden = {part: _Forbidden(**vars(getattr(data, part))) for part in forbidden}
    steps = 0 if name == "random" else 2
    config = make_config("basic_motions", method=name, overrides=[*TINY, f"training.steps={steps}"])
    assert pretrain(config, replace(data, **hidden), tmp_path).steps == steps


def test_supervised_learns_the_labels_of_the_training_rows(tmp_path: Path) -> None:
    """And a run without labels shuffled against it does not: they are what is learned."""
    data = load_dataset("digits")
    config = make_config(
        "digits",
        method="supervised",
        overrides=[
            *(o for o in TINY if "batch" not in o and "width" not in o),
            *("encoder.width=32", "training.steps=150", "training.learning_rate=3e-3"),
        ],
    )
    done = pretrain(config, data, tmp_path)
    loss = [value for _, value in done.history.series["loss"]]
    assert np.mean(loss[-10:]) < 0.5 * math.log(10) < 2.0 < loss[0]
    loaded = load_method(tmp_path / CHECKPOINT, data.inputs)
    assert isinstance(loaded, Supervised)
    assert loaded.task_kind == "classification"
    rows = replace(
        data.test, arrays={"image": data.test.arrays["image"][:50]}, labels=None, groups=None
    )
    assert torch.equal(extract_features(loaded, rows), extract_features(done.method, rows))


@pytest.mark.parametrize("kind", TASKS)
def test_a_supervised_method_is_rebuilt_from_its_weights(kind: str) -> None:
    method = built("supervised", (ROW,), TASKS[kind])
    found = stored_task(method.state_dict())
    assert (found.kind, found.outputs) == (kind, TASKS[kind].outputs)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", FIRST_NINE)
def test_every_method_trains_on_every_modality(dataset: str, tmp_path: Path) -> None:
    """Two steps each, every weight that is trained moves, and features come out."""
    data = load_dataset(dataset)
    rows = replace(
        data.train,
        arrays={key: values[:3] for key, values in data.train.arrays.items()},
        labels=None,
        groups=None,
    )
    for name in METHODS:
        steps = 0 if name == "random" else 2
        config = make_config(dataset, method=name, overrides=[*TINY, f"training.steps={steps}"])
        done = pretrain(config, data, tmp_path / name)
        assert not steps or len(read_history(tmp_path / name / HISTORY)["loss"]) == steps
        start = build_method(config, data.inputs, data.task)
        moved = {
            key: not torch.equal(value, dict(start.named_parameters())[key])
            for key, value in done.method.named_parameters()
        }
        assert set(moved.values()) == {steps > 0}, (name, moved)
        assert extract_features(done.method, rows).shape == (3, 16)


@pytest.mark.parametrize(
    ("name", "below"),
    # Chance is 2.08 for 8 examples, 0.64 for 3 moved tokens of 9, 2.20 for 9 columns; an example's
    # own shift is worth 0.8. Mixtures are never certain, and scores are linear in a column's value.
    [("emix", 1.7), ("shed", 0.2), ("capri", 1.9), ("mae_linear", 0.6)],
)
def test_baselines_learn_what_can_be_learned(name: str, below: float) -> None:
    """Columns and examples far apart from each other: every loss falls below chance."""
    generator = torch.Generator().manual_seed(0)
    columns = 2 * torch.randperm(9, generator=generator).float() - 8
    shift, noise = (torch.randn(8, size, generator=generator) for size in (1, 9))
    batch = {"row": columns + shift + 0.1 * noise}
    method = build_method(config_of(name, corruption=0.3), (ROW,))
    optimiser = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for step in range(450):
        loss = method(batch, draw(method, 8, step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < below < np.mean(losses[:5])


@pytest.mark.parametrize("name", BASELINES)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    data = load_dataset("captioned")
    whole, half = (
        make_config(
            "captioned",
            method=name,
            overrides=[*TINY, "encoder.dropout=0.1", f"training.steps={steps}"],
        )
        for steps in (4, 2)
    )
    straight = pretrain(whole, data, tmp_path / "straight").method.state_dict()
    pretrain(half, data, tmp_path / "resumed")
    resumed = pretrain(whole, data, tmp_path / "resumed", resume=True).method.state_dict()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_random_initialisation_refuses_to_be_trained(tmp_path: Path) -> None:
    config = make_config("sensors", method="random", overrides=["training.steps=5"])
    with pytest.raises(ConfigError, match=r"training\.steps=0 for method random.*got 5"):
        pretrain(config, load_dataset("sensors"), tmp_path)


@pytest.mark.parametrize("overrides", [(), ("adaptation.step_size=0.1",)])
def test_a_decoder_that_never_sees_the_latent_is_refused(overrides: tuple[str, ...]) -> None:
    """Depth 0 trains nothing but a mean per place, unless a contrast reaches the encoder."""
    data = load_dataset("digits")
    flat = [*TINY, "decoder.depth=0", *overrides]
    with pytest.raises(ConfigError, match=r"decoder\.depth >= 1 for mae .*use method mae_linear"):
        build_method(make_config("digits", method="mae", overrides=flat), data.inputs)
    with pytest.raises(ConfigError, match="for metamae without a contrast"):
        build_method(make_config("digits", overrides=[*flat, "contrast.weight=0"]), data.inputs)
    build_method(make_config("digits", method="random", overrides=flat), data.inputs)
    method = build_method(make_config("digits", overrides=flat), data.inputs)
    batch = data.pretrain.batch([0, 1, 2])
    loss = method(batch, draw(method, 3)).loss
    (gradient,) = torch.autograd.grad(loss, [method.network.encoder.class_token])
    assert gradient.any()
