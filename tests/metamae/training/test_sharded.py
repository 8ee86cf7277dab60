"""Weights in shards: FSDP2 trains what DDP does; its checkpoints go on in any other number."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from metamae import load_dataset
from metamae.errors import CheckpointError, ConfigError, TrainingError
from metamae.training import Checkpoint, pretrain
from metamae.training.pretraining import start_run
from metamae.training.ranks import Ranks
from metamae.training.resuming import newest, read_newest
from metamae.training.run_folder import CHECKPOINT, SHARDS, load_method, newest_shards
from metamae.training.sharded import check_shardable
from tests.metamae.training.test_ranks import CASES, CPU, config_of, gloo, use_float64

FSDP = "training.parallel=fsdp"
DEEP = ("encoder.depth=2", "decoder.depth=2")
PIECES = ("training.micro_batch=2", "training.accumulate=2", "training.clip_norm=0.1")
VARIANTS = (
    PIECES,
    ("adaptation.differentiation=checkpointed", "adaptation.steps=2"),
    ("adaptation.differentiation=finite_difference",),
    ("adaptation.differentiation=first_order",),
    ("decoder.attention=cross",),
)
pytestmark = gloo


def steps(name: str, folder: Path, ranks: Ranks, *overrides: str) -> dict[str, Any]:
    """Two steps: losses, what is logged, the loss after them, and whole weights."""
    config = config_of(name, *DEEP, *overrides)
    run = start_run(config, load_dataset(config.dataset), folder, CPU, ranks)
    found = {"losses": []}
    with run.input:
        for _ in range(2):
            taken = run.advance()
            run.log(taken)
            run.step += 1
            found["losses"].append(taken.loss)
    getattr(run, "reshard", lambda: None)()  # the logged numbers' evaluation
    state = run.method.state_dict()
    weights = {name: getattr(x, "full_tensor", x.clone)() for name, x in state.items()}
    numbers = sum(getattr(x, "to_local", x.clone)().numel() for x in run.method.parameters())
    run.refuse_ruined()
    after = run.loss_after()
    return {**found, "weights": weights, "numbers": numbers, "after": after} | run.history.series


def work(rank: int, size: int, folder: str, names: tuple[str, ...], variants: Any) -> None:
    """One of several processes."""
    torch.set_num_threads(1)
    use_float64()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
    )
    ranks, place = Ranks(rank, size), Path(folder)
    results: dict[str, Any] = {"steps": []}
    for name, overrides in [(name, ()) for name in names] + [("metamae", v) for v in variants]:
        results["steps"].append(
            [
                steps(name, place, ranks, f"training.parallel={p}", *overrides)
                for p in ("ddp", "fsdp")
            ]
        )
    data, own = load_dataset("basic_motions"), "" if rank == 0 else "nobody writes here"
    first = config_of("metamae", "training.steps=2", "training.checkpoint_every=1", FSDP)
    pretrain(first, data, place / own / "divided", ranks=ranks)
    ranks.from_first(lambda: shutil.copytree(place / "divided", place / "of two"))
    pretrain(config_of("metamae", FSDP), data, place / own / "of two", ranks=ranks, resume=True)
    pretrain(config_of("metamae", "training.steps=2"), data, place / own / "file", ranks=ranks)
    pretrain(config_of("metamae", FSDP), data, place / own / "file", ranks=ranks, resume=True)
    results["faults"] = []
    for overrides in (("training.micro_batch=1",), ("training.learning_rate=1e30",)):
        try:
            config = config_of("metamae", FSDP, *overrides)
            pretrain(config, data, place / f"fault{rank}", ranks=ranks)
        except (ConfigError, TrainingError) as fault:
            results["faults"].append(str(fault))
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    made = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.spawn(work, args=(2, str(made), ("mae",), (PIECES,)), nprocs=2)
    return made


def check_same_steps(folder: Path, size: int) -> None:
    for rank in range(size):
        for ddp, fsdp in torch.load(folder / f"rank{rank}.pt")["steps"]:
            whole, share = ddp.pop("numbers"), fsdp.pop("numbers")
            assert share < 1.2 * whole / size, "a process has its share alone"
            torch.testing.assert_close(fsdp, ddp, rtol=1e-9, atol=1e-12)


def test_fsdp_trains_as_ddp(folder: Path) -> None:
    """Losses, logged numbers and weights after two steps, in float64; pieces and clipping too."""
    check_same_steps(folder, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_fsdp_trains_every_method_as_ddp(size: int, tmp_path: Path) -> None:
    """And MetaMAE with every gradient policy."""
    args = (size, str(tmp_path), tuple(CASES), VARIANTS)
    torch.multiprocessing.spawn(work, args=args, nprocs=size)
    check_same_steps(tmp_path, size)


@pytest.fixture
def float64() -> Any:
    from metamae.data.dataset import Partition

    before = Partition.batch
    use_float64()
    yield
    torch.set_default_dtype(torch.float32)
    Partition.batch = before  # type: ignore[method-assign]


@pytest.mark.usefixtures("float64")
def test_a_divided_run_goes_on_in_any_number_of_processes(folder: Path, tmp_path: Path) -> None:
    """In one, in two, and from the file of one that was not divided: weights and moments."""
    data = load_dataset("basic_motions")
    pretrain(config_of("metamae"), data, tmp_path / "whole")
    shutil.copytree(folder / "divided", tmp_path / "one")
    assert newest(tmp_path / "one").parent.name == SHARDS
    pretrain(config_of("metamae"), data, tmp_path / "one", resume=True)
    assert not (tmp_path / "one" / SHARDS).exists(), "of an earlier step"
    expected = read_newest(tmp_path / "whole", "cpu")
    for path in (tmp_path / "one", folder / "of two", folder / "file"):
        found = read_newest(path, "cpu")
        assert found.step == 4
        torch.testing.assert_close(found.model, expected.model, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            found.optimiser["state"], expected.optimiser["state"], rtol=0, atol=1e-9
        )
        assert found.history.keys() == expected.history.keys()


@pytest.mark.usefixtures("float64")
def test_a_divided_run_ends_in_the_file_that_others_read(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "of two" / SHARDS).iterdir()) == ["000003"]
    exported = Checkpoint.load(folder / "of two" / CHECKPOINT)
    assert exported.step == 4
    method = load_method(folder / "of two" / CHECKPOINT)
    torch.testing.assert_close(dict(method.state_dict()), exported.model)
    divided = read_newest(folder / "of two", "cpu").model
    torch.testing.assert_close(divided, exported.model, rtol=0, atol=0)
    assert not (folder / "nobody writes here").exists()


def test_what_does_not_go_together_is_named(folder: Path, tmp_path: Path) -> None:
    for rank in range(2):
        indivisible, ruined = torch.load(folder / f"rank{rank}.pt")["faults"]
        assert "expected training.batch_size that 2 processes divide" in indivisible
        assert "its update ruined the weights" in ruined
    with pytest.raises(ConfigError, match=r"several processes with training\.parallel=fsdp.*torch"):
        pretrain(config_of("mae", FSDP), load_dataset("tabular"), tmp_path)
    for change in ("target.kind=teacher", "masking.rule=attention", "masking.rule=hard"):
        name, _, value = change.partition("=")
        with pytest.raises(ConfigError, match=f"expected {name}=.* got {value}, which looks at"):
            check_shardable(config_of("mae", FSDP, change), Ranks(0, 2))


def damage(shards: Path, kind: str) -> None:
    """One of the ways in which files go wrong."""
    file = next(shards.glob("*.distcp"))
    if kind == "a changed byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif kind == "a missing file":
        file.unlink()
    else:
        (shards / "state.pt").unlink()


@pytest.mark.parametrize("kind", ["a changed byte", "a missing file", "a missing state"])
def test_damage_is_named(kind: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "divided", tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).unlink()
    shards = newest_shards(tmp_path / "run")
    assert shards
    damage(shards, kind)
    with pytest.raises(CheckpointError, match="expected a complete checkpoint in"):
        read_newest(tmp_path / "run", "cpu")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_a_description_runs_no_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metamae.training.shards import sizes_in

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"it names posix\.mkdir"):
        sizes_in(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_half_written_checkpoint_is_none(folder: Path, tmp_path: Path) -> None:
    """Nor are weights without their moments one to go on from."""
    shutil.copytree(folder / "divided", tmp_path / "run")
    complete = newest_shards(tmp_path / "run")
    assert complete
    shutil.copytree(complete, complete.with_name("000009.partial"))
    assert newest_shards(tmp_path / "run") == complete
    shutil.rmtree(complete)
    with pytest.raises(CheckpointError, match="got weights alone, whose moments"):
        read_newest(tmp_path / "run", "cpu")
