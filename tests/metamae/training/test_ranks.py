"""Divided batches: several processes, and pieces, train what one process does on whole batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metalearn.randomness import seeded
from metamae import load_dataset, make_config
from metamae.cli.main import main
from metamae.config.schema import Config
from metamae.data.dataset import Partition
from metamae.errors import ConfigError, TrainingError
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.methods.method import Method
from metamae.model.dropout import Dropout, sharing
from metamae.training import Checkpoint, pretrain
from metamae.training.pieces import PieceLoss
from metamae.training.pretraining import start_run
from metamae.training.ranked import RankedRun
from metamae.training.ranks import Ranks
from tests.tiny import SIZES

CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "metamae": ("metamae", "basic_motions", ("adaptation.learned=channel",)),
    "metamae-inputs": ("metamae", "captioned", ("encoder.dropout=0.2", "adaptation.steps=2")),
    "mae": ("mae", "tabular", ("encoder.dropout=0.2", "decoder.query_fraction=0.5")),
    "umae": ("umae", "tabular", ("masking.ratio_range=[0.3,0.7]",)),
    "mae_contrast": ("mae_contrast", "basic_motions", ("encoder.dropout=0.2",)),
    "mixed": (
        *("umae", "tabular"),
        ("decoder.attention=cross", "decoder.mix_blocks=true", "encoder.dropout=0.2"),
    ),
    "masks": ("umae", "tabular", ("target.masks=3", "encoder.dropout=0.2")),
    "emix": ("emix", "basic_motions", ("encoder.dropout=0.2",)),
    "emix-published": ("emix", "tabular", ("baseline.emix.weighting=as_published",)),
    "shed": ("shed", "basic_motions", ()),
    "capri": ("capri", "tabular", ()),
    "mae_linear": ("mae_linear", "captioned", ()),
    "lfr": ("lfr", "captioned", ("encoder.dropout=0.2", "baseline.lfr.hidden=8")),
    "gon": ("gon", "captioned", ("adaptation.learned=channel",)),
    "supervised": ("supervised", "basic_motions", ()),
}
WHOLE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "adaptive": ("mae", "tabular", ("masking.rule=adaptive",)),
}
"""Cases whose weights are not divided among processes."""

DIVIDED = ("training.micro_batch=2", "training.accumulate=2")
CPU = torch.device("cpu")


def config_of(name: str, *overrides: str) -> Config:
    """Of a batch that neither two nor four processes divide evenly."""
    method, data, own = (CASES | WHOLE)[name]
    common = ("training.batch_size=5", "training.steps=4", "training.log_every=1")
    return make_config(data, method=method, seed=1, overrides=[*SIZES, *common, *own, *overrides])


@dataclass
class Taken:
    """What a step came to."""

    history: dict[str, list[list[float]]]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    after: float


def take(name: str, ranks: Ranks, folder: Path, *overrides: str) -> Taken:
    """One step, and the loss after it."""
    config = config_of(name, *overrides)
    run = start_run(config, load_dataset(config.dataset), folder, CPU, ranks)
    with run.input:
        run.log(run.advance())
    run.step += 1
    found = {n: p.grad.clone() for n, p in run.method.named_parameters() if p.grad is not None}
    assert len(found) == len(list(run.method.parameters()))
    return Taken(run.history.series, found, dict(run.method.named_buffers()), run.loss_after())


def assert_same(found: Taken, expected: Taken) -> None:
    close: dict[str, float] = {"rtol": 1e-9, "atol": 1e-11}
    assert found.history.keys() == expected.history.keys()
    for series, ((_, value),) in expected.history.items():
        assert found.history[series][0][1] == pytest.approx(value, rel=1e-9), series
    torch.testing.assert_close(found.gradients, expected.gradients, **close)
    torch.testing.assert_close(found.buffers, expected.buffers, **close)
    assert found.after == pytest.approx(expected.after, rel=1e-9)


def use_float64() -> None:
    """In float64 nothing but mathematics can differ."""
    torch.set_default_dtype(torch.float64)
    plain = Partition.batch

    def batch(self: Partition, index: Any) -> dict[str, Tensor]:
        found = plain(self, index)
        return {n: x.double() if x.is_floating_point() else x for n, x in found.items()}

    Partition.batch = batch  # type: ignore[method-assign]


@pytest.fixture
def float64() -> Iterator[None]:
    before = Partition.batch
    use_float64()
    yield
    torch.set_default_dtype(torch.float32)
    Partition.batch = before  # type: ignore[method-assign]


# --- pieces, in one process -----------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES | WHOLE)
def test_pieces_have_the_loss_and_gradient_of_the_whole_batch(name: str, tmp_path: Path) -> None:
    """Dropout, batch statistics and negatives included."""
    expected = take(name, Ranks(), tmp_path)
    assert_same(take(name, Ranks(), tmp_path, "training.micro_batch=2"), expected)
    alone = take(name, Ranks(), tmp_path, "training.batch_size=4")
    assert alone.after != pytest.approx(expected.after, rel=1e-6), "the fifth example counts"


def test_a_run_goes_on_in_pieces(tmp_path: Path) -> None:
    """With the same configuration but for them, to the same weights."""
    data = load_dataset("basic_motions")
    whole = pretrain(config_of("metamae"), data, tmp_path / "whole").method.state_dict()
    pretrain(config_of("metamae", "training.steps=2"), data, tmp_path / "pieces")
    rest = config_of("metamae", "training.micro_batch=3")
    pieces = pretrain(rest, data, tmp_path / "pieces", resume=True).method.state_dict()
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


# --- processes ------------------------------------------------------------------------------------


def work(rank: int, size: int, folder: str, names: tuple[str, ...]) -> None:
    """One of several processes: steps of all methods, then a run that is stopped early."""
    warnings.filterwarnings("ignore", message="Grad strides")
    torch.set_num_threads(1)
    use_float64()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
    )
    ranks, results = Ranks(rank, size), {}
    for name in names:
        results[name] = vars(take(name, ranks, Path(folder)))
    results["divided"] = vars(take("metamae", ranks, Path(folder), *DIVIDED))
    method = pretrain(
        config_of("metamae", "training.steps=2"),
        load_dataset("basic_motions"),
        Path(folder, "run" if rank == 0 else "nobody writes here"),
        ranks=ranks,
    ).method
    results["trained"] = method.state_dict()
    results["faults"] = faults(ranks, Path(folder))
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def faults(ranks: Ranks, folder: Path) -> list[str]:
    """Errors that all processes meet together."""
    caught = []

    def lacking() -> None:
        raise ConfigError("of process 0")

    def huge() -> None:
        config = config_of("mae", "training.learning_rate=1e30")
        pretrain(config, load_dataset("tabular"), folder / f"huge{ranks.rank}", ranks=ranks)

    for action in (
        lambda: ranks.from_first(lacking),
        lambda: ranks.check_same("seed", str(min(ranks.rank, 1))),
        huge,
        lambda: take("metamae", ranks, folder, "training.batch_size=1", "contrast.weight=0"),
        lambda: take("metamae", ranks, folder, "adaptation.support_mean=batch"),
    ):
        try:
            action()
            caught.append("")
        except (ConfigError, TrainingError) as fault:
            caught.append(str(fault))
    return caught


def spawn(size: int, folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    torch.multiprocessing.spawn(work, args=(size, str(folder), names), nprocs=size)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(size)]


def check(size: int, folder: Path, names: tuple[str, ...]) -> None:
    """Against one process; the run that was stopped goes on in one."""
    by_rank = spawn(size, folder, names)
    for name in names:
        expected = take(name, Ranks(), folder)
        for results in by_rank:
            assert_same(Taken(**results[name]), expected)
    divided = take("metamae", Ranks(), folder, "training.accumulate=2")
    for results in by_rank:
        assert_same(Taken(**results["divided"]), divided)
        assert all(
            torch.equal(x, y)
            for x, y in zip(
                results["trained"].values(), by_rank[0]["trained"].values(), strict=True
            )
        ), "the same bits in all processes"
    assert not (folder / "nobody writes here").exists()
    data = load_dataset("basic_motions")
    assert Checkpoint.load(folder / "run" / "checkpoint.pt").step == 2
    resumed = pretrain(config_of("metamae"), data, folder / "run", resume=True)
    whole = pretrain(config_of("metamae"), data, folder / "whole")
    torch.testing.assert_close(
        resumed.method.state_dict(), whole.method.state_dict(), rtol=0, atol=1e-9
    )
    assert resumed.history.series.keys() == whole.history.series.keys()
    for rank, results in enumerate(by_rank):
        first, differs, huge, small, published = results["faults"]
        assert first == "of process 0"
        assert ("the same seed" in differs) == (rank > 0)
        assert "training.learning_rate" in huge
        assert "an example for every process, got 1; lower --nproc" in small
        assert f"adaptation.support_mean=task with {size} processes" in published


gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without torch.distributed and its gloo backend",
)


@gloo
@pytest.mark.usefixtures("float64")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Loss, gradient, statistics and history; then resumed by one."""
    check(2, tmp_path, ("metamae", "mae", "emix"))


@gloo
@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_train_every_method_as_one(size: int, tmp_path: Path) -> None:
    check(size, tmp_path, tuple(CASES | WHOLE))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.compile=on", "training.compile=off or auto"),
        ("adaptation.support_mean=batch", "adaptation.support_mean=task"),
        ("learn.settings=[step_size]", r"no learn\.settings"),
    ],
)
def test_what_does_not_go_together_is_named(override: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"expected {named} with training.micro_batch=2"):
        take("metamae", Ranks(), tmp_path, "training.micro_batch=2", override)


class Other(MAE):
    """Another loss, of which nothing is known."""

    def forward(self, batch: Any, split: Any) -> Any:
        return super().forward(batch, split)


class Alike(MetaMAE):
    """The same loss with more to look at."""

    extra = 1


def test_a_method_says_how_its_loss_is_divided() -> None:
    """The class that defines the loss does; one that inherits it need not."""
    for kind in (Other, Method):
        with pytest.raises(ConfigError, match=f"divided among.*got {kind.__name__}"):
            kind.check_divisible(kind.__new__(kind))
    for kind in (MAE, MetaMAE, Alike):
        kind.check_divisible(kind.__new__(kind))


def test_a_negative_piece_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.micro_batch >= 0"):
        config_of("mae", "training.micro_batch=-1")


def test_commands_of_one_process_are_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one line, of one process."""
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["probe", "nowhere"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == lines
        assert "metamae pretrain under torchrun" in said or not lines


# --- parts ----------------------------------------------------------------------------------------


@given(size=st.integers(1, 9), batch=st.integers(9, 40))
def test_rows_are_divided_evenly_and_completely(size: int, batch: int) -> None:
    shares = [Ranks(rank, size).rows(batch) for rank in range(size)]
    assert [row for share in shares for row in range(batch)[share]] == list(range(batch))
    counts = Ranks(0, size).counts(batch)
    assert counts == tuple(share.stop - share.start for share in shares)
    assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(batch=st.integers(1, 6), cut=st.integers(0, 6), share=st.floats(0.1, 0.9))
def test_parts_of_a_batch_drop_what_the_whole_does(batch: int, cut: int, share: float) -> None:
    """And the whole drops what torch does, to the bit."""
    cut = min(cut, batch)
    x, dropout = torch.randn(batch, 3, 4), Dropout(share)
    with seeded(5):
        whole = dropout(x)
    with seeded(5):
        assert torch.equal(whole, nn.functional.dropout(x, share))
    parts = []
    for rows in (slice(0, cut), slice(cut, batch)):
        with seeded(5), sharing(batch, rows):
            parts.append(dropout(x[rows]))
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(dropout.eval()(x), x)


class Doubling(Ranks):
    """Two processes with the same rows, of which one is there."""

    gathers: ClassVar[list[torch.Size]] = []

    def gather(self, rows: Tensor, counts: Any) -> Tensor:
        self.gathers.append(rows.shape)
        return torch.cat([rows, rows])


def test_all_rows_of_a_process_are_exchanged_at_once() -> None:
    """As if kind by kind: values, shapes, types and gradients."""
    kinds = (torch.randn(2, 3, 4).requires_grad_(), torch.randn(2), torch.randn(2, 5).bfloat16())
    loss = PieceLoss(nn.Identity(), Doubling(0, 2), 4)  # type: ignore[arg-type]
    found = loss.gathered(kinds)
    assert Doubling.gathers == [(2, 3 * 4 + 1 + 5)]
    torch.testing.assert_close(found, [torch.cat([kind, kind]) for kind in kinds], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((found[0] ** 2).sum(), kinds[0])
    torch.testing.assert_close(gradient, 4 * kinds[0])


def test_a_single_run_is_not_divided(tmp_path: Path) -> None:
    """Its bits are those it always had."""
    config = config_of("mae")
    run = start_run(config, load_dataset(config.dataset), tmp_path, CPU)
    assert not isinstance(run, RankedRun)
