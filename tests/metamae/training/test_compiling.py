"""The compiled loss equals the eager one, runs are exact, and a failure is told.

Most tests stop before code generation (backend ``aot_eager``): what is traced and the gradient
derived from it are ours, the code is torch's. One test generates code, for a network as small as
can be: a C++ compiler takes a second or two over each kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.randomness import seeded
from metamae import ConfigError, TrainingError, load_dataset, make_config
from metamae.config import schema as config_module
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.inputs import Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.progress import Reporter
from metamae.randomness import generator
from metamae.training import run as training
from metamae.training.batches import batch_indices
from metamae.training.checkpoint import Checkpoint
from metamae.training.compiling import CompiledLoss
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import CHECKPOINT
from tests.tiny import SIZES

CPU = torch.device("cpu")
TINY = [
    *(*SIZES, "decoder.width=8", "training.batch_size=12", "training.steps=6"),
    *("training.checkpoint_every=3", "training.log_every=2", "training.compile=on"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training compiles without generating code."""
    monkeypatch.setattr(training, "CompiledLoss", partial(CompiledLoss, backend="aot_eager"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("basic_motions")


def tiny(*overrides: str, **values: Any) -> Config:
    return make_config("basic_motions", overrides=[*TINY, *overrides], **values)


def problem(config: Config, dataset: Dataset) -> tuple[MAE, dict[str, Tensor], Any]:
    size = config.training.batch_size
    method = build_method(config, dataset.inputs).train()
    split = method.draw(size, generator(0, "split"))
    return method, dataset.pretrain.batch(range(size)), split


def gradient(method: MAE, loss: Callable[..., Any], *given: Any) -> list[Tensor]:
    value = loss(*given).loss
    found = torch.autograd.grad(value, list(method.parameters()), allow_unused=True)
    return [value.detach(), *(x for x in found if x is not None)]


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("mae", []),
        ("metamae", ["adaptation.step_size=5.0", "adaptation.steps=2"]),
        ("metamae", ["decoder.attention=cross", "adaptation.learned=channel_step"]),
        ("metamae", ["adaptation.differentiation=first_order", "adaptation.support_mean=batch"]),
    ],
)
def test_compiled_gradients_equal_eager_ones(
    data: Dataset, method: str, overrides: list[str]
) -> None:
    """In float64, in one graph; the second-order part is seen, for the step is large."""
    model, batch, split = problem(tiny(*overrides, method=method), data)
    model, batch = model.double(), {name: x.double() for name, x in batch.items()}
    compiled = CompiledLoss(model, 12, CPU, backend="aot_eager")
    ours = gradient(model, compiled, batch, split)
    assert (compiled.overflows, compiled.failure) == (0, "")
    theirs = gradient(model, model, batch, split)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_share_of_the_memory_changes_no_number(data: Dataset) -> None:
    """Fewer bytes wait for the backward pass, and the gradient is the same. Two are traced."""
    config = tiny("adaptation.step_size=5.0", "contrast.weight=0", "encoder.depth=1")
    model, batch, split = problem(config, data)
    model, batch = model.double(), {name: x.double() for name, x in batch.items()}
    kept, gradients = [], [gradient(model, model, batch, split)]
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for share in (1.0, 0.5):
        loss = CompiledLoss(model, 12, CPU, memory=share, backend="aot_eager_decomp_partition")
        node: Any = loss(batch, split).loss.grad_fn
        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in node.saved_tensors
        }
        kept.append(sum(size for at, size in storages.items() if at not in parameters))
        gradients.append(gradient(model, loss, batch, split))
    assert kept[1] < 0.75 * kept[0]
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_symbols_and_several_inputs_compile() -> None:
    inputs = (Tabular(name="row", columns=6), Tokens(name="words", length=6, vocabulary=5))
    method = build_method(tiny(), inputs).train().double()
    batch = {"row": torch.randn(12, 6).double(), "words": torch.randint(5, (12, 6))}
    split = method.draw(12, generator(0, "split"))
    compiled = CompiledLoss(method, 12, CPU, backend="aot_eager")
    ours, theirs = (gradient(method, loss, batch, split) for loss in (compiled, method))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_one_graph_serves_all_batches_and_the_rest_is_eager(data: Dataset) -> None:
    """Other counts of nearby tokens compile nothing; too many are evaluated as they are."""
    method, batch, split = problem(tiny("masking.nearby_ratio=0.3"), data)
    compiled = CompiledLoss(method, 12, CPU, backend="aot_eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    seen = set()
    for seed in range(4):
        drawn = method.draw(12, generator(seed, "split"))
        seen.add(drawn.slots)
        assert compiled(batch, drawn).loss.item() == pytest.approx(
            method(batch, drawn).loss.item(), rel=1e-5
        )
    assert len(seen) > 1
    assert counters["stats"]["unique_graphs"] == 1
    compiled.slots = (1,)
    full = replace(split, nearby=torch.ones_like(split.nearby), slots=(split.nearby.shape[1],))
    assert torch.equal(compiled(batch, full).loss, method(batch, full).loss)
    assert compiled.overflows == 1


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_compiled_run_resumes_with_the_same_bits(data: Dataset, tmp_path: Path) -> None:
    """Dropout included; it reports its time of compiling, apart from that of training."""
    dropout = "encoder.dropout=0.3"
    whole = pretrain(tiny(dropout), data, tmp_path / "whole")
    pretrain(tiny(dropout, "training.steps=3"), data, tmp_path / "part")
    pretrain(tiny(dropout), data, tmp_path / "part", resume=True)
    first, second = (Checkpoint.load(tmp_path / n / CHECKPOINT) for n in ("whole", "part"))
    for name, value in first.model.items():
        assert torch.equal(second.model[name], value), name
    assert first.history["query"] == second.history["query"]
    assert first.history["compile_seconds"] == [[1, pytest.approx(whole.compiling, abs=1e-3)]]
    assert [step for step, _ in second.history["compile_seconds"]] == [1, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_compiled_run_learns_what_an_eager_one_does(data: Dataset, tmp_path: Path) -> None:
    compiled = pretrain(tiny(), data, tmp_path / "compiled")
    eager = pretrain(tiny("training.compile=off"), data, tmp_path / "eager")
    assert eager.compiling == 0
    assert "compile_seconds" not in eager.history.series
    pairs = zip(compiled.history.series["query"], eager.history.series["query"], strict=True)
    for (_, ours), (_, theirs) in pairs:
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.usefixtures("traced")
@pytest.mark.slow
def test_a_long_run_is_compiled_without_being_told(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tiny("training.compile=auto")
    assert "compile_seconds" not in pretrain(long, data, tmp_path / "a").history.series
    monkeypatch.setattr(config_module, "COMPILE_FROM", 6)
    assert "compile_seconds" in pretrain(long, data, tmp_path / "b").history.series


def test_what_cannot_be_compiled_runs_eagerly_and_says_why(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CompiledLoss", partial(CompiledLoss, backend="broken"))

    def broken(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("no compiler here")

    torch._dynamo.register_backend(compiler_fn=broken, name="broken")
    with pytest.warns(RuntimeWarning, match=r"not compiled, slower: FileNotFoundError: no compil"):
        pretrain(tiny(), data, tmp_path / "a")
    pretrain(tiny("training.compile=off"), data, tmp_path / "b")
    first, second = (Checkpoint.load(tmp_path / n / CHECKPOINT) for n in ("a", "b"))
    assert all(torch.equal(first.model[name], x) for name, x in second.model.items())
    assert first.history == second.history


def test_another_gradient_is_noticed_before_training(data: Dataset) -> None:
    method, batch, split = problem(tiny(), data)
    before = {name: x.clone() for name, x in method.state_dict().items()}
    compiled = CompiledLoss(method, 12, CPU, backend="aot_eager")
    right = compiled._compiled
    compiled._compiled = lambda *given: (1.01 * right(*given)[0], {}, None)
    compiled.prepare(batch, split)
    assert compiled.failure.startswith("the compiled loss differs by 1.0e-02")
    assert all(torch.equal(before[name], x) for name, x in method.state_dict().items())
    assert torch.equal(compiled(batch, split).loss, method(batch, split).loss)


@pytest.mark.filterwarnings("ignore::metamae.errors.DataWarning")
@pytest.mark.usefixtures("traced")
def test_a_support_loss_that_is_not_finite_is_named_when_compiled(
    data: Dataset, tmp_path: Path
) -> None:
    """No check runs inside the graph: the losses are looked at after it, before the update."""
    values = data.pretrain.arrays["signal"].copy()
    values[int(batch_indices(40, 12, 0, 2)[4])] = 1e30
    poisoned = replace(data, pretrain=replace(data.pretrain, arrays={"signal": values}))
    config = tiny("training.checkpoint_every=1", "contrast.weight=0")
    with pytest.raises(TrainingError, match=r"support losses.*index 4.*at step 3 .*nothing was"):
        pretrain(config, poisoned, tmp_path)
    assert Checkpoint.load(tmp_path / CHECKPOINT).step == 2


def test_settings_that_cannot_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unrolled or first_order where training\.compile=on"):
        tiny("adaptation.differentiation=checkpointed")
    with pytest.raises(ConfigError, match=r"training\.compile_memory in \(0, 1\].*got 0"):
        tiny("training.compile_memory=0")
    with pytest.raises(ConfigError, match=r"compile=on or auto where training\.cuda_graphs=on"):
        tiny("training.compile=off", "training.cuda_graphs=on")
    assert tiny("training.cuda_graphs=on").training.compile == "on"


def generated(*overrides: str, method: str) -> tuple[CompiledLoss, MAE, Any, Any]:
    """Through the default backend; skips where there is no compiler."""
    config = tiny("contrast.weight=0", *overrides, method=method)
    model = build_method(config, (Tabular(name="row", columns=6),)).train()
    values = torch.randn(4, 6, generator=generator(0, "values"))
    batch, split = {"row": values}, model.draw(4, generator(0, "split"))
    compiled = CompiledLoss(model, 4, CPU)
    with seeded(0):
        compiled.prepare(batch, split)
    if "Cpp" in compiled.failure or "Cxx" in compiled.failure or "NotFound" in compiled.failure:
        pytest.skip(f"torch.compile finds no working C++ compiler here: {compiled.failure}")
    assert compiled.failure == ""
    return compiled, model, batch, split


@pytest.mark.slow
def test_generated_code_equals_eager() -> None:
    """A compiler runs: half a minute or more when nothing is cached. Blocks share their code."""
    compiled, model, batch, split = generated("encoder.depth=2", method="metamae")
    ours, theirs = (gradient(model, loss, batch, split) for loss in (compiled, model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_generated_dropout_is_the_eager_one_and_reproducible() -> None:
    """Also in blocks that share their code. The same bits from one seed, others from another."""
    overrides = ("encoder.depth=2", "encoder.dropout=0.5")
    compiled, model, batch, split = generated(*overrides, method="mae")
    runs = []
    for seed in (1, 1, 2):
        with seeded(seed), compiled.repeatable():
            runs.append(gradient(model, compiled, batch, split))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])
    with seeded(1):
        eager = gradient(model, model, batch, split)
    torch.testing.assert_close(runs[0], eager, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_another_gradient_is_noticed_under_dropout(data: Dataset) -> None:
    """Both sides draw the same masks, so a wrong factor is seen."""
    method, batch, split = problem(tiny("encoder.dropout=0.3"), data)
    compiled = CompiledLoss(method, 12, CPU, backend="aot_eager")
    compiled.prepare(batch, split)
    assert compiled.failure == ""
    right = compiled._compiled
    compiled._compiled = lambda *given: (1.01 * right(*given)[0], {}, None)
    compiled.prepare(batch, split)
    assert compiled.failure.startswith("the compiled loss differs by 1.0e-02")


def test_the_reporter_tells_the_time(data: Dataset, tmp_path: Path, traced: None) -> None:
    said: list[str] = []
    reporter = Reporter(None)
    reporter.say = said.append  # type: ignore[method-assign]
    pretrain(tiny(), data, tmp_path, reporter=reporter)
    assert len(said) == 2
    assert said[0].startswith("basic_motions metamae #0: pretrain: compiling, which can take min")
    assert said[1].startswith("basic_motions metamae #0: pretrain: compiled in ")
