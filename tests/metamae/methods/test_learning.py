"""Learned settings: relaxations against finite differences, resume to the bit, clear errors."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalearn.multilevel.bridge import INSTALL_COMMAND
from metamae import CheckpointError, ConfigError, DataError, build_method, load_dataset, make_config
from metamae.config.schema import Config
from metamae.config.sections import LEARNABLE
from metamae.inputs import Tabular, Tokens
from metamae.methods.learning import LearningMetaMAE
from metamae.methods.ratios import MaskRatios, MixedRatioSplit, RatioPart
from metamae.model.transformer import Attention
from metamae.randomness import generator
from metamae.report.curves import draw_settings
from metamae.training.bilevel import LEARNED, BilevelRun, cut
from metamae.training.checkpoint import Checkpoint
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import CHECKPOINT, HISTORY, load_method, read_history
from tests.tiny import SIZES

if importlib.util.find_spec("betty") is None:
    pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}", allow_module_level=True)

TINY = [
    *SIZES,
    *("masking.mask_ratio=0.5", "masking.nearby_ratio=0.3", "adaptation.step_size=0.5"),
    *("contrast.weight=0.1", "contrast.temperature=0.5", "training.learning_rate=1e-3"),
    *("training.batch_size=12", "training.log_every=3", "training.steps=12"),
    *("learn.unroll_steps=2", "learn.warmup_steps=3", "training.checkpoint_every=5"),
]


def tiny(*overrides: str, learned: tuple[str, ...] = LEARNABLE, data: str = "digits") -> Config:
    settings = f"learn.settings=[{','.join(learned)}]"
    return make_config(data, overrides=[*TINY, settings, *overrides])


def learner(config: Config) -> LearningMetaMAE:
    method = build_method(config, load_dataset(config.dataset).inputs)
    assert isinstance(method, LearningMetaMAE)
    return method


def batch(config: Config, size: int = 12) -> dict[str, Tensor]:
    return load_dataset(config.dataset).pretrain.batch(torch.arange(size))


def test_nothing_changes_for_runs_that_learn_nothing(tmp_path: Path) -> None:
    """Same initial weights, and the loss of MetaMAE at the configured settings."""
    config = tiny(learned=("step_size", "contrast_weight", "temperature"))
    learning, plain = learner(config), build_method(tiny(learned=()), load_dataset("digits").inputs)
    shared = plain.state_dict()
    assert all(torch.equal(value, learning.state_dict()[name]) for name, value in shared.items())
    draw = learning.draw_training(12, generator(0, "masks"))
    (part,) = draw.parts
    view = learning._view(part.ratio, 1.0)
    assert view.masking.support_counts == plain.network.masking.support_counts
    expected = plain(batch(config), part.split)
    found = learning(batch(config), draw)
    assert torch.allclose(found.loss, expected.loss, atol=0, rtol=1e-6)
    assert torch.allclose(learning(batch(config), part.split).terms["query"], found.terms["query"])
    assert not (tmp_path / LEARNED).exists()


def test_the_grid_holds_every_ratio_that_masks_other_tokens() -> None:
    """16 tokens: 15 ratios; several inputs need something visible and masked in each."""
    (digits,) = load_dataset("digits").inputs
    grid = MaskRatios((digits,))
    assert torch.allclose(grid.ratios, torch.arange(1, 16) / 16)
    assert grid.nearest(0.52) == 7
    joint = MaskRatios(
        (Tabular(name="row", columns=2), Tokens(name="text", length=8, vocabulary=3))
    )
    assert float(joint.ratios.min()) >= 1 / 10
    assert all(count > 0 for m in joint.maskings for count in (*m.support_counts, *m.query_counts))
    with pytest.raises(ConfigError, match="at least two mask ratios"):
        MaskRatios((Tabular(name="row", columns=2),))


def slope(function: Callable[[], Tensor], parameter: Tensor, size: float = 1e-4) -> float:
    """Central difference of a function of a scalar parameter."""
    values = []
    with torch.no_grad():
        for sign in (1, -2, 1):
            parameter += sign * size
            if sign != 1 or not values:
                values.append(function())
    return float((values[0] - values[1]) / (2 * size))


@pytest.mark.parametrize("name", ["step_size", "contrast_weight", "temperature"])
def test_continuous_settings_have_their_own_derivative(name: str) -> None:
    """Of the training loss, by central differences in float64."""
    config = tiny()
    method = learner(config).double()
    given = {k: v.double() for k, v in batch(config).items()}
    draw = method.draw_training(12, generator(0, "masks"))
    (parameter,) = method.settings[name].parameters()
    (exact,) = torch.autograd.grad(method(given, draw).loss, [parameter])
    assert exact.item() != 0.0
    with torch.enable_grad():
        measured = slope(lambda: method(given, draw).loss.detach(), parameter)
    assert exact.item() == pytest.approx(measured, rel=1e-5)


def gradient(method: LearningMetaMAE, given: dict[str, Tensor], draw: MixedRatioSplit) -> Tensor:
    """Gradient of the training loss in one weight matrix, differentiable."""
    weight = method.network.decoder.embed.weight
    (found,) = torch.autograd.grad(method(given, draw).loss, [weight], create_graph=True)
    return found


def test_the_mask_ratio_estimate_is_unbiased() -> None:
    """Exact expectation over both ratios, its derivative by mu against a central difference.

    The masks are fixed per ratio, so the only randomness is which two ratios are drawn, and the
    expectation is a finite sum.
    """
    config = tiny("learn.mask_spread=0.2", learned=("mask_ratio",), data="tabular")
    method = learner(config).double()
    for module in method.modules():
        if isinstance(module, Attention):
            module.fused = False  # a mixed derivative is taken below
    method.meta.contrast = None  # its own dependence on the ratio is left out of the estimate
    given = {k: v.double() for k, v in batch(config).items()}
    count = len(method.mask_ratios.ratios)
    shape = method.network.decoder.embed.weight.shape
    direction = torch.randn(shape, generator=generator(0, "direction"), dtype=torch.float64)
    (parameter,) = method.settings["mask_ratio"].parameters()
    estimates, along = torch.zeros(count, count), torch.zeros(count, count)
    for one in range(count):
        for other in range(count):
            draw = MixedRatioSplit(
                tuple(
                    RatioPart(rows, k, method.mask_ratios.draw(k, 6, 0.3, generator(1, str(rows))))
                    for k, rows in ((one, slice(0, 6)), (other, slice(6, 12)))
                )
            )
            alongside = (gradient(method, given, draw) * direction).sum()
            (estimates[one, other],) = torch.autograd.grad(alongside, [parameter])
            along[one, other] = alongside.detach()

    def expectation(values: Tensor) -> Tensor:
        p = method.log_probabilities().exp().detach().float()
        return p @ values @ p

    # d/dmu of the expected gradient: what the weights follow on average.
    measured = slope(lambda: expectation(along), parameter, 1e-2)
    assert abs(measured) > 1e-3
    assert float(expectation(estimates)) == pytest.approx(measured, rel=1e-2)


def test_the_weights_do_not_notice_the_relaxations() -> None:
    """Gradients in the weights are those of MetaMAE on the drawn masks."""
    config = tiny(learned=("mask_ratio", "nearby_ratio"))
    method = learner(config)
    draw = method.draw_training(12, generator(3, "masks"))
    assert len(draw.parts) == 2
    found = gradient(method, batch(config), draw)
    method.settings = torch.nn.ModuleDict()
    assert torch.allclose(found, gradient(method, batch(config), draw), atol=1e-6)


def test_the_nearby_ratio_enters_as_the_weight_of_drawn_tokens() -> None:
    """At scale s every drawn nearby token counts s times: the support loss written out."""
    config = tiny(learned=("nearby_ratio",))
    method = learner(config)
    draw = method.draw_training(12, generator(0, "masks"))
    (part,) = draw.parts
    given = batch(config)
    network = method._view(part.ratio, torch.tensor(0.25))
    targets = network.tokenizer.targets(given)
    latent = network.encode(network.visible_tokens(given, part.split))
    losses = []
    for scale in (0.0, 0.25, 1.0):
        view = method._view(part.ratio, torch.tensor(scale))
        losses.append(view.support_loss(latent, targets, part.split))
    drawn = part.split.nearby.sum(1)
    assert drawn.max() > 0
    visible = part.split.support_idx.shape[1]
    nearby = losses[2] * (visible + drawn) - losses[0] * visible
    expected = (losses[0] * visible + 0.25 * nearby) / (visible + 0.25 * drawn)
    assert torch.allclose(losses[1], expected, rtol=1e-5)
    (parameter,) = method.settings["nearby_ratio"].parameters()
    (found,) = torch.autograd.grad(method(given, draw).loss, [parameter])
    assert found.item() != 0.0


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_of_the_settings_the_reference_knows_the_step_size_alone(weight: float) -> None:
    """Otherwise masking less, or contrasting less, would lower it for free."""
    config = tiny(f"learn.reference_contrast={weight}")
    method = learner(config)
    draw = method.draw_reference(12, generator(0, "masks"))
    assert [round(float(method.mask_ratios.ratios[part.ratio]), 2) for part in draw.parts] == [
        0.25,
        0.5,
        0.75,
    ]
    settings = dict(method.settings.named_parameters())
    loss = method.reference(batch(config), draw)
    found = torch.autograd.grad(loss, list(settings.values()), allow_unused=True)
    used = {name.split(".")[0] for name, g in zip(settings, found, strict=True) if g is not None}
    assert used == {"step_size"}


def test_the_reference_is_query_loss_and_a_fixed_contrast() -> None:
    """The contrast is over all parts at once, by a softmax written here, with its own weight."""
    plain, mixed = (learner(tiny(f"learn.reference_contrast={w}")) for w in (0.0, 0.3))
    given, draw = batch(tiny()), plain.draw_reference(12, generator(0, "masks"))
    with torch.no_grad():
        for method in (plain, mixed):
            method.settings["contrast_weight"].log_value.add_(2.0)
        parts = [plain._evaluate(given, part, 1.0) for part in draw.parts]
        assert plain.meta.contrast is not None
        project = plain.meta.contrast.projector  # it normalises over a batch
        both = torch.cat([project(torch.cat([part[n] for part in parts])) for n in (1, 2)])
        unit = torch.nn.functional.normalize(both, dim=1)
        logits = (unit @ unit.T / 0.5).fill_diagonal_(-torch.inf)
        expected = torch.nn.functional.cross_entropy(logits, torch.arange(24).roll(12))
        found = mixed.reference(given, draw) - plain.reference(given, draw)
    assert found.item() == pytest.approx(0.3 * expected.item(), rel=1e-4)


@pytest.mark.parametrize("data", ["digits", "captioned"])
def test_resume_is_bit_exact_with_betty_in_the_loop(tmp_path: Path, data: str) -> None:
    """Stopped after 5 and 8 steps: weights, settings, history and both optimisers are the same."""
    dataset = load_dataset(data)
    kinds = ["encoder.dropout=0.2", "learn.hypergradient=sama"]
    whole = pretrain(tiny(*kinds, data=data), dataset, tmp_path / "whole")
    for steps in (5, 8, 12):
        config = tiny(*kinds, f"training.steps={steps}", data=data)
        parts = pretrain(config, dataset, tmp_path / "parts", resume=True)
        torch.rand(3)
    one, other = (Checkpoint.load(tmp_path / run / CHECKPOINT) for run in ("whole", "parts"))
    leaves = [torch.utils._pytree.tree_leaves((c.model, c.optimiser)) for c in (one, other)]
    assert len(leaves[0]) == len(leaves[1]) > 100
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)) if a is not None else b is None
    learned = whole.history.series["learned/mask_ratio"]
    assert learned[-1] == parts.history.series["learned/mask_ratio"][-1]
    assert learned[0][1] != learned[-1][1]
    assert one.optimiser["levels"]["settings"]["steps"] == 5  # after steps 4, 6, 8, 10, 12


def test_a_run_leaves_what_it_learned(tmp_path: Path) -> None:
    """History, learned.json, a picture; the checkpoint rebuilds the method with learned values."""
    config = tiny()
    done = pretrain(config, load_dataset("digits"), tmp_path)
    found = json.loads((tmp_path / LEARNED).read_text())
    assert found["step"] == 12
    assert found["start"]["step_size"] == 0.5
    assert set(found["learned"]) == set(LEARNABLE)
    moved = [abs(found["learned"][name] / found["start"][name] - 1) for name in LEARNABLE]
    assert min(moved) > 1e-3
    history = read_history(tmp_path / HISTORY)
    assert history == done.history.series
    assert history["learned/step_size"][-1][1] == found["learned"]["step_size"]
    assert [step for step, _ in history["reference"]] == [4, 6, 8, 10, 12]
    again = load_method(tmp_path / CHECKPOINT, load_dataset("digits").inputs)
    assert isinstance(again, LearningMetaMAE)
    assert again.values() == found["learned"]
    draw_settings({"digits": [history]}, tmp_path / "settings.png")
    assert (tmp_path / "settings.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="learned the same settings"):
        draw_settings({"digits": [{"loss": [[1, 1.0]]}]}, tmp_path / "none.png")


def test_held_out_examples_are_never_trained_on(tmp_path: Path) -> None:
    """The two parts are disjoint, whole, and drawn by the seed."""
    config = tiny("learn.held_out=0.25")
    rows, held_out = cut(100, config)
    assert sorted([*rows.tolist(), *held_out.tolist()]) == list(range(100))
    assert len(held_out) == 25
    assert not torch.equal(cut(100, tiny("learn.held_out=0.25", "seed=1"))[1], held_out)
    run = BilevelRun(config, load_dataset("digits"), tmp_path, torch.device("cpu"))
    seen: list[int] = []
    original = type(run.data).batch

    def spy(self: object, index: Tensor) -> dict[str, Tensor]:
        seen.extend(index.tolist())
        return original(self, index)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.data), "batch", spy)
        for step in range(40):
            run.load(step)
        trained = set(seen)
        seen.clear()
        for step in range(40):
            run.load_held_out(step)
    assert not trained & set(seen)
    assert set(seen) <= set(run.held_out.tolist())


@pytest.mark.filterwarnings("ignore::metamae.errors.DataWarning")
def test_what_cannot_be_learned_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mask_ratio'"):
        tiny(learned=("mask_ration",))
    with pytest.raises(ConfigError, match="without repetition"):
        tiny(learned=("mask_ratio", "mask_ratio"))
    with pytest.raises(ConfigError, match="start of nearby_ratio that can be learned"):
        learner(tiny("masking.nearby_ratio=0"))
    with pytest.raises(ConfigError, match=r"adaptation\.learned=none"):
        learner(tiny("adaptation.learned=channel"))
    with pytest.raises(ConfigError, match=r"contrast\.weight > 0"):
        learner(tiny("contrast.weight=0", learned=("temperature",)))
    starved = tiny("learn.held_out=0.999")
    with pytest.raises(DataError, match="to train on and 3 held out, got"):
        pretrain(starved, load_dataset("digits"), tmp_path / "few")
    pretrain(tiny("training.steps=2"), load_dataset("digits"), tmp_path / "run")
    changed = tiny("training.steps=3", learned=("step_size",))
    with pytest.raises(CheckpointError, match=r"learn\.settings"):
        pretrain(changed, load_dataset("digits"), tmp_path / "run", resume=True)


def test_mae_has_nothing_to_learn(tmp_path: Path) -> None:
    """The flag is for MetaMAE; the methods beside it train as ever."""
    config = make_config("digits", method="mae", overrides=[*TINY, "learn.settings=[mask_ratio]"])
    pretrain(config, load_dataset("digits"), tmp_path)
    assert not (tmp_path / LEARNED).exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_learning_on_cuda(tmp_path: Path) -> None:
    """Masks and data are drawn on the CPU, so the settings go the CPU's way."""
    values = []
    for device in ("cpu", "cuda"):
        done = pretrain(tiny(), load_dataset("digits"), tmp_path / device, device=device)
        values.append(done.history.series["learned/step_size"][-1][1])
    assert values[1] == pytest.approx(values[0], rel=0.05)
