"""Sweeps on a cluster: tasks of Dask, a worker that is killed, SLURM's script as text."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor as Pool
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metamae import ConfigError
from metamae.experiments import executors
from metamae.experiments import sweep as sweeping
from metamae.experiments.executors import Executor, run_on_cluster, slurm_cluster
from metamae.experiments.sweep import RESULTS, SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.progress import Reporter
from metamae.report.rows import Key, Result, read_results
from metamae.training.run_folder import CHECKPOINT
from tests.tiny import SIZES

SILENT = Reporter(None)


def make(folder: Path, *methods: str, **settings: Any) -> SweepRun:
    folder.mkdir(exist_ok=True)
    spec = {
        "datasets": {"basic_motions": {"probe": ["basic_motions"]}},
        "methods": list(methods),
        "seeds": [0],
        "protocols": ["few-1"],
        "overrides": [*SIZES, "training.steps=2", "training.batch_size=20", "probe.epochs=3"],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    sweep = read_sweep(folder / "sweep.yaml")
    return SweepRun(sweep=sweep, out=folder / "out", device=torch.device("cpu"), **settings)


def untimed(rows: list[Result]) -> dict[Key, Result]:
    return {row.key: replace(row, pretrain_seconds=0.0, probe_seconds=0.0) for row in rows}


class Cluster:
    """Answers as a client of Dask does; its worker is a thread."""

    def __init__(self) -> None:
        self.pool: Pool = ThreadPoolExecutor(1)

    def get_executor(self, pure: bool) -> Pool:
        assert not pure, "a task that was done before is done again"
        return self.pool

    def nthreads(self) -> dict[str, int]:
        return {"tcp://node1:1": 1, "tcp://node2:1": 4}


@dataclass
class Job:
    run_dir: Path
    fails: bool = False

    def moved(self, run_dir: Path) -> Job:
        return Job(run_dir, self.fails)

    def run(self, reporter: Reporter) -> Path:
        if self.fails:
            raise ConfigError("cannot")
        (self.run_dir / "left").write_text("here")
        return self.run_dir


@pytest.mark.parametrize("text", ["", "dask", "dask:", "slurm:x", "local:2", "ray"])
def test_another_executor_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"local, dask:ADDRESS .* or slurm, got"):
        Executor.parse(text)


def test_jobs_come_back_with_what_they_came_to(tmp_path: Path) -> None:
    """Each with its number; an error is one job's."""
    jobs = [Job(tmp_path), Job(tmp_path, fails=True), Job(tmp_path)]
    with SILENT.stage("cells", total=3) as stage:
        outcomes = dict(run_on_cluster(jobs, Cluster(), tmp_path, 1, stage))
    assert outcomes[0] == outcomes[2] == tmp_path
    assert str(outcomes[1]) == "cannot"
    assert [path.name for path in tmp_path.iterdir()] == ["left"], "no mark is left"


def test_a_worker_without_the_folder_has_one_of_its_own(tmp_path: Path) -> None:
    folder = executors._take(Job(tmp_path), tmp_path / "unseen", 1)
    assert folder != tmp_path
    assert not folder.exists(), "and leaves nothing"
    assert list(tmp_path.iterdir()) == []


def test_workers_that_take_several_tasks_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 that take several \(tcp://node2:1\).*--nthreads 1"):
        executors._refuse_threads(Cluster())


def test_rows_of_a_cluster_are_those_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is shared only rows come back, and they count."""
    alone, failures = make(tmp_path / "alone", "random").run(SILENT)
    assert failures == {}
    take = executors._take
    for name, shared in (("shared", True), ("apart", False)):
        unseen = tmp_path / "unseen"
        monkeypatch.setattr(
            executors, "_take", lambda j, m, t, s=shared, u=unseen: take(j, m if s else u, t)
        )
        run = make(tmp_path / name, "random", executor=Executor("dask", "anywhere"))
        monkeypatch.setattr(sweeping, "connected", lambda *_: _Open())
        rows, failures = run.run(SILENT)
        assert (untimed(rows), failures) == (untimed(alone), {})
        assert bool(list(run.out.rglob(CHECKPOINT))) is shared
        monkeypatch.setattr(sweeping, "connected", None)
        again, _ = run.run(SILENT)  # nothing is left to do
        assert again == rows == read_results(run.out / RESULTS)


class _Open:
    def __enter__(self) -> Cluster:
        return Cluster()

    def __exit__(self, *_: object) -> None:
        return


class Killed(sweeping._Job):
    """Takes its process along, once."""

    def run(self, reporter: Reporter) -> list[Result]:
        mark = self.run_dir.parent / "was killed"
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(reporter)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_cells_of_a_worker_that_is_killed_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Dask, on a local cluster of two workers."""
    distributed = pytest.importorskip("distributed")
    alone, _ = make(tmp_path / "alone", "random", "mae", "metamae").run(SILENT)
    monkeypatch.setattr(sweeping, "_Job", Killed)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        executor = Executor.parse(f"dask:{cluster.scheduler_address}")
        run = make(tmp_path / "two", "random", "mae", "metamae", executor=executor)
        rows, failures = run.run(SILENT)
    assert (untimed(rows), failures) == (untimed(alone), {})
    assert len(list(run.out.rglob("was killed"))) == 3


@pytest.mark.filterwarnings("default")
def test_slurm_is_asked_for_jobs_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that is handed in, as text."""
    pytest.importorskip("dask_jobqueue")
    with slurm_cluster(4, memory="8GB", walltime="02:00:00", queue="short") as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p short",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=8G",
        "#SBATCH -t 02:00:00",
        "export OMP_NUM_THREADS=4",
    ):
        assert line in script
    assert "dask_worker" in script.replace(" ", "_")
    assert "--nthreads 1" in script


@pytest.mark.filterwarnings("default")
def test_slurm_without_settings_is_named() -> None:
    pytest.importorskip("dask_jobqueue")
    with pytest.raises(ConfigError, match=r"expected jobqueue\.slurm\.memory .* got none"):
        slurm_cluster(1)
