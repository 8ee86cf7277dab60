"""Pretraining: resumed runs end with the same bits, and whatever goes wrong has a clear error."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from metalearn.randomness import fold
from metamae import (
    CheckpointError,
    Config,
    ConfigError,
    DataError,
    TrainingError,
    build_method,
    load_dataset,
    make_config,
)
from metamae.data.dataset import Dataset
from metamae.evaluation.features import extract_features
from metamae.progress import Reporter
from metamae.randomness import generator
from metamae.training.batches import batch_indices
from metamae.training.callbacks import LOG
from metamae.training.card import CARD
from metamae.training.checkpoint import Checkpoint
from metamae.training.devices import multiplies_bfloat16
from metamae.training.model_folder import MODEL, WEIGHTS
from metamae.training.pretraining import Pretrained, pretrain
from metamae.training.run_folder import CHECKPOINT, CONFIG, DATA, HISTORY, load_method
from tests import ROOT
from tests.tiny import SIZES

TINY = [
    *SIZES,
    *("masking.mask_ratio=0.5", "masking.nearby_ratio=0.1", "adaptation.step_size=0.5"),
    *("contrast.weight=0.1", "contrast.temperature=0.5", "training.learning_rate=1e-3"),
    *("training.batch_size=12", "training.steps=20", "training.log_every=3"),
]
VARIANTS = {
    "plain": [],
    "dropout": ["encoder.dropout=0.3"],
    "learned": ["adaptation.learned=channel_step", "adaptation.steps=2"],
}
KILLED = """
import json, os, pathlib, signal, sys
import torch._dynamo  # the first optimiser does, slowly: once is enough
from metamae import load_dataset
from metamae.config.schema import Config
from metamae.training.pretraining import pretrain

class Killer:
    count = 0
    def stage(self, title, *, total, done=0, unit=""):
        return self
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def say(self, text):
        pass
    def advance(self, **values):
        self.count += 1
        if self.count == 13:
            os.kill(os.getpid(), signal.SIGKILL)

data = load_dataset("basic_motions")
for folder, values in json.loads(sys.stdin.read()).items():
    child = os.fork()
    if child == 0:
        pretrain(Config.from_dict(values), data, pathlib.Path(folder), reporter=Killer())
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def tiny(*overrides: str, method: str = "metamae", seed: int = 0) -> Config:
    every = (
        () if any("checkpoint_every" in o for o in overrides) else ("training.checkpoint_every=5",)
    )
    return make_config(
        "basic_motions", method=method, seed=seed, overrides=[*TINY, *every, *overrides]
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("basic_motions")


@pytest.fixture(scope="module")
def straight(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of 20 steps that nothing disturbed."""
    root = tmp_path_factory.mktemp("straight")
    for name, overrides in VARIANTS.items():
        pretrain(tiny(*overrides), data, root / name)
    return {name: root / name for name in VARIANTS}


@pytest.fixture(scope="module")
def killed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the same runs, killed by SIGKILL in step 13 of 20, after the checkpoint of 10."""
    root = tmp_path_factory.mktemp("killed")
    jobs = {str(root / name): tiny(*overrides).to_dict() for name, overrides in VARIANTS.items()}
    package = ROOT
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=json.dumps(jobs),
        env=os.environ
        | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(VARIANTS), done.stderr
    return {name: root / name for name in VARIANTS}


def bits(value: Any) -> Any:
    """Any nest of tensors as plain values whose equality is equality of all bits."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.cpu().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on interruptions."""
    found = Checkpoint.load(folder / CHECKPOINT)
    return {
        "model": bits(found.model),
        "optimiser": bits(found.optimiser),
        "history": found.history,
        "step": found.step,
        "config": found.config,
        "files": ((folder / HISTORY).read_text(), (folder / CONFIG).read_text()),
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    data: Dataset, straight: dict[str, Path], killed: dict[str, Path], variant: str
) -> None:
    """Weights, optimiser state and history; also under dropout and with learned step sizes."""
    folder = killed[variant]
    assert Checkpoint.load(folder / CHECKPOINT).step == 10
    assert not (folder / HISTORY).exists()
    done = pretrain(tiny(*VARIANTS[variant]), data, folder, resume=True)
    assert done.steps == 20
    expected = outcome(straight[variant])
    assert outcome(folder) == expected
    assert [step for step, _ in expected["history"]["query"]] == [1, 4, 7, 10, 13, 16, 19, 20]


def test_the_variants_of_the_resume_test_differ(straight: dict[str, Path]) -> None:
    """So dropout and learned step sizes did something, and were resumed."""
    found = {name: Checkpoint.load(path / CHECKPOINT) for name, path in straight.items()}
    losses = {name: run.history["loss"][-1][1] for name, run in found.items()}
    assert len(set(losses.values())) == 3
    fixed = {name: set(run.model) for name, run in found.items()}
    (name,) = fixed["learned"] - fixed["plain"]
    start = build_method(tiny(*VARIANTS["learned"]), load_dataset("basic_motions").inputs)
    assert found["learned"].model[name].shape == (2, 16)
    assert not torch.equal(found["learned"].model[name], start.state_dict()[name])


class _Interrupting(Reporter):
    """A reporter that raises after so many steps."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__(None)
        self.after, self.error = after, error

    def stage(self, *_: Any, **__: Any) -> Any:
        return self

    def __enter__(self) -> _Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, **_: float) -> None:
        self.after -= 1
        if self.after == 0:
            raise self.error


@pytest.mark.parametrize("after", [5, 6, 20])
def test_an_interrupt_at_any_step_loses_nothing(
    data: Dataset, straight: dict[str, Path], tmp_path: Path, after: int
) -> None:
    """Before, at and after a checkpoint, and after the last step."""
    config = tiny()
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, data, tmp_path, reporter=_Interrupting(after, KeyboardInterrupt()))
    pretrain(config, data, tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(straight["plain"])


def test_a_finished_run_is_left_as_it_is(straight: dict[str, Path], data: Dataset) -> None:
    before = outcome(straight["plain"])
    again = pretrain(tiny(), data, straight["plain"], resume=True)
    assert again.steps == 20
    assert again.seconds == Checkpoint.load(straight["plain"] / CHECKPOINT).seconds > 0
    assert again.cpu_seconds == 0.0
    assert outcome(straight["plain"]) == before


def test_same_seed_same_bits_other_seed_other_bits(
    data: Dataset, straight: dict[str, Path], tmp_path: Path
) -> None:
    pretrain(tiny(), data, tmp_path / "same")
    pretrain(tiny(seed=1), data, tmp_path / "other")
    first, same = outcome(straight["plain"]), outcome(tmp_path / "same")
    assert same == first
    other = outcome(tmp_path / "other")
    assert other["model"] != first["model"]
    assert other["history"]["query"] != first["history"]["query"]


def test_the_global_random_states_are_left_alone(data: Dataset, tmp_path: Path) -> None:
    """And do not matter: the run is a function of its seed."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    config = tiny("encoder.dropout=0.3", "training.steps=3")
    first = pretrain(config, data, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    torch.manual_seed(6)
    second = pretrain(config, data, tmp_path / "b")
    assert bits(first.method.state_dict()) == bits(second.method.state_dict())


def test_training_moves_every_weight_and_returns_eval_mode(
    data: Dataset, straight: dict[str, Path]
) -> None:
    start = build_method(tiny(), data.inputs).state_dict()
    end = Checkpoint.load(straight["plain"] / CHECKPOINT).model
    assert list(start) == list(end)
    still = [name for name in start if torch.equal(start[name], end[name])]
    assert not still
    done = pretrain(tiny("training.steps=1", "training.log_every=1"), data, straight["plain"] / "x")
    assert not any(module.training for module in done.method.modules())
    assert done.cpu_seconds > 0


def test_zero_steps_keep_the_initial_weights(data: Dataset, tmp_path: Path) -> None:
    config = tiny("training.steps=0", method="random")
    done = pretrain(config, data, tmp_path)
    assert (done.steps, done.seconds, done.history.series) == (0, 0.0, {})
    expected = build_method(config, data.inputs).state_dict()
    assert bits(Checkpoint.load(tmp_path / CHECKPOINT).model) == bits(expected)
    assert json.loads((tmp_path / HISTORY).read_text()) == {}


def test_a_run_folder_tells_how_it_was_made(straight: dict[str, Path]) -> None:
    folder = straight["learned"]
    config = tiny(*VARIANTS["learned"])
    assert Config.from_dict(yaml.safe_load((folder / CONFIG).read_text())) == config
    found = Checkpoint.load(folder / CHECKPOINT)
    assert (found.config, found.step) == (config, 20)
    assert set(found.provenance) >= {"metamae", "revision", "torch", "python"}
    assert json.loads((folder / HISTORY).read_text()) == found.history
    assert set(found.history) == {"loss", "query", "contrast", "support_before", "support_after"}
    weight = config.contrast.weight
    for (_, loss), (_, query), (_, contrast) in zip(
        *(found.history[name] for name in ("loss", "query", "contrast")), strict=True
    ):
        assert loss == pytest.approx(query + weight * contrast, rel=1e-5)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(
        [CARD, CHECKPOINT, CONFIG, DATA, HISTORY, LOG, MODEL, WEIGHTS]
    )


# Resuming with other settings


@pytest.mark.parametrize(
    "override",
    [
        "training.learning_rate=0.5",
        "training.batch_size=13",
        "masking.mask_ratio=0.6",
        "encoder.dropout=0.25",
        "encoder.width=20",
        "adaptation.step_size=0.75",
        "contrast.weight=0.7",
        "seed=9",
        "method=mae",
        "token_size=[5]",
    ],
)
def test_a_changed_setting_is_refused_by_name(
    straight: dict[str, Path], data: Dataset, override: str
) -> None:
    key, _, value = override.partition("=")
    before = (straight["plain"] / CHECKPOINT).read_bytes()
    config = make_config(
        "basic_motions", overrides=[*TINY, "training.checkpoint_every=5", override]
    )
    with pytest.raises(CheckpointError) as caught:
        pretrain(config, data, straight["plain"], resume=True)
    message = str(caught.value)
    assert f"changes in {key}: " in message
    assert message.count(" -> ") == 1
    assert f"-> {value}" in message.replace("'", "")
    assert str(straight["plain"]) in message
    assert (straight["plain"] / CHECKPOINT).read_bytes() == before


def test_fewer_steps_than_done_are_refused(straight: dict[str, Path], data: Dataset) -> None:
    with pytest.raises(CheckpointError, match=r"at most 19 steps in .* checkpoint after 20; ask"):
        pretrain(tiny("training.steps=19"), data, straight["plain"], resume=True)


def test_more_steps_continue_the_run(
    straight: dict[str, Path], data: Dataset, tmp_path: Path
) -> None:
    """With the same bits as if all had been asked for at once; other logging is allowed too."""
    pretrain(tiny("training.steps=8"), data, tmp_path)
    asked = tiny("training.checkpoint_every=7", "training.log_every=4", "probe.epochs=3")
    done = pretrain(asked, data, tmp_path, resume=True)
    found, expected = outcome(tmp_path), outcome(straight["plain"])
    assert (done.steps, found["step"]) == (20, 20)
    assert found["config"] == asked
    assert found["model"] == expected["model"]
    assert found["optimiser"] == expected["optimiser"]


def test_the_saved_configuration_is_that_of_the_last_resume(data: Dataset, tmp_path: Path) -> None:
    pretrain(tiny("training.steps=2"), data, tmp_path)
    pretrain(tiny("training.steps=3"), data, tmp_path, resume=True)
    assert yaml.safe_load((tmp_path / CONFIG).read_text())["training"]["steps"] == 3


def test_without_resume_a_run_starts_anew(data: Dataset, tmp_path: Path) -> None:
    """Whatever the folder held."""
    short = tiny("training.steps=3")
    for folder in ("used", "new"):
        pretrain(short, data, tmp_path / folder)
    pretrain(replace(short, seed=3), data, tmp_path / "used")
    pretrain(short, data, tmp_path / "used")
    assert outcome(tmp_path / "used") == outcome(tmp_path / "new")


# Errors


def poisoned(data: Dataset, step: int, value: float) -> Dataset:
    """The data set with a huge, finite value in one row of the batch of a step of seed 0."""
    row = int(batch_indices(len(data.pretrain), 12, 0, step)[4])
    values = np.array(data.pretrain.arrays["signal"])
    values[row] = value
    return replace(data, pretrain=replace(data.pretrain, arrays={"signal": values}))


@pytest.mark.filterwarnings("ignore::metamae.errors.DataWarning")
@pytest.mark.parametrize("method", ["mae", "metamae"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    step: int,
) -> None:
    """The error names step and term; the last checkpoint is that of the step before."""
    built: list[nn.Module] = []
    updates: list[dict[str, Any]] = []

    def build(*arguments: Any) -> Any:
        built.append(build_method(*arguments))
        return built[-1]

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            updates.append(bits(built[-1].state_dict()))

    monkeypatch.setattr("metamae.training.run.build_method", build)
    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    config = tiny("training.checkpoint_every=1", "contrast.weight=0", method=method)
    with pytest.raises(TrainingError, match=rf"at step {step + 1}\b") as caught:
        pretrain(config, poisoned(data, step, 1e30), tmp_path)
    assert "query" in str(caught.value) or "support loss" in str(caught.value)
    assert "nothing was updated" in str(caught.value)
    assert len(updates) == step
    before = build_method(config, data.inputs).state_dict() if step == 0 else None
    assert bits(built[-1].state_dict()) == (updates[-1] if before is None else bits(before))
    if step:
        found = Checkpoint.load(tmp_path / CHECKPOINT)
        assert (found.step, bits(found.model)) == (step, updates[-1])


def test_a_diverging_run_names_its_step(data: Dataset, tmp_path: Path) -> None:
    """A rate so high that the first update ruins the weights."""
    config = tiny("training.learning_rate=1e30", method="mae")
    with pytest.raises(TrainingError, match=r"got nan at step 2 \(query nan\); nothing was upd"):
        pretrain(config, data, tmp_path)


def test_a_diverging_metamae_run_names_its_step(data: Dataset, tmp_path: Path) -> None:
    """Here it is the logging of the first step that meets the ruined weights."""
    with pytest.raises(TrainingError, match=r"step [12]\b"):
        pretrain(tiny("training.learning_rate=1e30"), data, tmp_path)


def test_a_value_that_is_not_finite_names_its_row(data: Dataset, tmp_path: Path) -> None:
    row = int(batch_indices(40, 12, 0, 1)[4])
    with pytest.raises(DataError, match=f"got nan in row {row} "):
        pretrain(tiny(), poisoned(data, 1, np.nan), tmp_path)


def test_too_few_examples_for_a_batch(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one batch of 41 examples .* 'basic_motions' has 40"):
        pretrain(tiny("training.batch_size=41"), data, tmp_path)
    assert pretrain(tiny("training.batch_size=40", "training.steps=1"), data, tmp_path).steps == 1


def test_a_contrast_needs_two_examples(data: Dataset, tmp_path: Path) -> None:
    """One example a batch is an error of the settings, unless nothing is contrasted."""
    with pytest.raises(ConfigError, match=r"training\.batch_size"):
        pretrain(tiny("training.batch_size=1"), data, tmp_path)
    alone = tiny("training.batch_size=1", "contrast.weight=0", "training.steps=2")
    assert pretrain(alone, data, tmp_path).steps == 2


# Mixed precision


def test_bfloat16_autocast_trains_close_to_float32(
    data: Dataset, straight: dict[str, Path], tmp_path: Path
) -> None:
    """Weights stay float32, losses agree to bfloat16's three digits, and it does take part."""
    done = pretrain(tiny("training.autocast=bfloat16"), data, tmp_path)
    assert {weight.dtype for weight in done.method.parameters()} == {torch.float32}
    exact = json.loads((straight["plain"] / HISTORY).read_text())
    for name in ("query", "support_before", "contrast"):
        mixed, plain = (np.array(x[name])[:, 1] for x in (done.history.series, exact))
        assert not np.array_equal(mixed, plain)
        np.testing.assert_allclose(mixed, plain, rtol=0.05)


# Rebuilding


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_method_is_rebuilt_from_its_file_alone(
    data: Dataset, straight: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    """Moved elsewhere, without any configuration: equal weights and equal features."""
    done: Pretrained = pretrain(tiny(*VARIANTS[variant]), data, straight[variant], resume=True)
    moved = tmp_path / "moved.pt"
    moved.write_bytes((straight[variant] / CHECKPOINT).read_bytes())
    method = load_method(moved, data.inputs)
    assert type(method) is type(done.method)
    assert not method.training
    assert bits(method.state_dict()) == bits(done.method.state_dict())
    features = extract_features(method, data.test)
    assert torch.equal(features, extract_features(done.method, data.test))
    untrained = build_method(tiny(*VARIANTS[variant]), data.inputs)
    assert not torch.allclose(features, extract_features(untrained, data.test), atol=1e-3)


def test_weights_that_do_not_fit_the_inputs_are_refused(straight: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"weights for inputs \['image'\] in ") as caught:
        load_method(straight["plain"] / CHECKPOINT, load_dataset("digits").inputs)
    assert "\n" not in str(caught.value)


# Order and randomness


def test_an_epoch_covers_every_example_once() -> None:
    for epoch in range(3):
        steps = range(8 * epoch, 8 * epoch + 8)
        seen = torch.cat([batch_indices(40, 5, seed=1, step=step) for step in steps])
        assert sorted(seen.tolist()) == list(range(40))


def test_the_last_partial_batch_is_dropped_and_another_one_every_epoch() -> None:
    epochs = [
        torch.cat([batch_indices(40, 12, 0, step) for step in (3 * e, 3 * e + 1, 3 * e + 2)])
        for e in range(60)
    ]
    assert all(len(set(epoch.tolist())) == 36 for epoch in epochs)
    dropped = [frozenset(range(40)) - set(epoch.tolist()) for epoch in epochs]
    assert len(set(dropped)) > 50
    assert frozenset.union(*dropped) == set(range(40))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    """So it can be asked for in any order, also after another seed was used."""
    first = batch_indices(40, 8, 0, 7)
    others = [batch_indices(40, 8, 1, 7), batch_indices(40, 8, 0, 2), batch_indices(40, 8, 0, 6)]
    assert all(not torch.equal(first, other) for other in others)
    assert torch.equal(batch_indices(40, 8, 0, 7), first)


def test_random_draws_are_functions_of_seed_stream_and_index() -> None:
    """Fixed numbers: a change would break every resume and every published seed."""
    assert fold(0, "masks", 0) == 8819659362841743110
    draws = {
        fold(seed, stream, i) for seed in (0, 1) for stream in ("masks", "order") for i in (0, 1)
    }
    assert len(draws) == 8
    assert all(0 <= draw < 2**63 for draw in draws)
    first = torch.rand(3, generator=generator(0, "masks", 4))
    torch.rand(3)
    assert torch.equal(torch.rand(3, generator=generator(0, "masks", 4)), first)


@pytest.mark.parametrize("known", [True, False])
def test_bfloat16_without_products_of_it_is_said_to_be_slower(
    known: bool, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamae.training.pretraining.multiplies_bfloat16", lambda device: known)
    said: list[str] = []
    reporter = Reporter(None)
    reporter.say = said.append  # type: ignore[method-assign]
    config = tiny("training.steps=1", "training.autocast=bfloat16")
    pretrain(config, data, tmp_path, reporter=reporter)
    title = "basic_motions metamae #0: pretrain: "
    text = "this cpu device has no bfloat16 products, which makes training.autocast=bfloat16 slower"
    assert [line.startswith(title + text) for line in said] == [True] * (not known)


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "expected"),
    [
        *[("x86_64", False, False, False), ("AMD64", False, True, True)],
        *[("x86_64", True, False, True), ("aarch64", False, False, True)],
    ],
)
def test_which_processors_multiply_bfloat16(
    machine: str, avx512: bool, amx: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either instruction set will do; of what is not x86 nothing is known."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert multiplies_bfloat16(torch.device("cpu")) is expected
