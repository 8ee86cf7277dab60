"""What an earlier revision computed and left on disk: the same numbers, and files still of use.

``earlier/runs.json`` was recorded at revision 52783ce, before the packages by role: every method on
two data sets for 20 steps, with the losses of every step, features of ten rows, and probe results.
On the hardware and torch it was recorded with the bits are the same; elsewhere the sums round
differently, and the numbers are close. ``earlier/sweep`` is a folder of that revision's sweep.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from metamae import load_dataset
from metamae.cli.main import main
from metamae.evaluation import Features, compute_features, evaluate
from metamae.experiments.plan import resolve
from metamae.experiments.sweep import SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.progress import Reporter
from metamae.report.rows import read_results
from metamae.training import load_method, pretrain, read_history
from metamae.training.provenance import device_name
from metamae.training.run_folder import CHECKPOINT, HISTORY

EARLIER = Path(__file__).parent / "earlier"
RECORDED = json.loads((EARLIER / "runs.json").read_text())
SAME_MACHINE = (RECORDED["hardware"], RECORDED["torch"]) == (
    device_name(torch.device("cpu")),
    torch.__version__,
)
SETTINGS = (
    *("training.steps=20", "training.log_every=1", "training.batch_size=32", "probe.epochs=5"),
    *("encoder.width=32", "encoder.depth=2", "encoder.heads=2", "encoder.dropout=0.1"),
    *("decoder.width=32", "decoder.depth=2", "decoder.heads=2"),
    *("contrast.hidden=32", "contrast.out=16"),
)
FLAVOURS = {
    "metamae-learning": (
        "learn.settings=[step_size,contrast_weight,nearby_ratio,mask_ratio]",
        *("learn.warmup_steps=2", "learn.unroll_steps=3"),
    ),
    "metamae-cross": ("decoder.attention=cross",),
}
SLOW = "tuned"
"""On digits it takes longer than all the rest: with ``--slow`` only."""
RUN = "basic_motions/default/metamae/seed-0"


def compare(found: Any, recorded: Any, *, relative: float = 1e-3) -> None:
    if SAME_MACHINE:
        assert found == recorded
    else:
        np.testing.assert_allclose(found, recorded, rtol=relative, atol=relative)


@pytest.mark.parametrize("key", RECORDED["runs"])
def test_every_method_computes_what_it_did(
    key: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recorded = RECORDED["runs"][key]
    name, flavour = key.split("/")
    if flavour == "metamae-learning":
        pytest.importorskip("betty")
    overrides = (*SETTINGS, *FLAVOURS.get(flavour, ()))
    config = resolve(name, "pocket", flavour.partition("-")[0], 3, overrides)
    dataset = load_dataset(name)
    done = pretrain(config, dataset, tmp_path)
    assert done.history.series.keys() == recorded["history"].keys()
    for series, points in recorded["history"].items():
        compare(done.history.series[series], points)
    features = Features.of(dataset, *compute_features(done.method, dataset))
    compare(features.train[:10].tolist(), recorded["features"])
    for protocol, expected in recorded["probes"].items():
        if protocol == SLOW and name == "digits" and not request.config.getoption("--slow"):
            continue
        with threadpool_limits(2, user_api="blas"):  # as it was recorded: sums depend on it
            result = evaluate(protocol, features, config.probe, seed=3)
        values = {**expected, **{column: getattr(result, column) for column in expected}}
        if SAME_MACHINE:
            assert values == expected
        else:
            assert values["settings"] == expected["settings"]
            assert abs(values["value"] - expected["value"]) < 0.1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an earlier sweep's folder."""
    return Path(shutil.copytree(EARLIER / "sweep", tmp_path / "sweep"))


def test_an_earlier_sweep_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are current: nothing is trained or probed again."""
    monkeypatch.setattr("metamae.experiments.sweep.run_cell", None)
    run = SweepRun(sweep=read_sweep(EARLIER / "sweep.yaml"), out=folder, device=torch.device("cpu"))
    rows, failures = run.run(Reporter(None))
    assert failures == {}
    assert rows == read_results(EARLIER / "sweep" / "results.json")
    assert {row.protocol for row in rows} == {"published", "knn"}


def test_an_earlier_run_goes_on_as_it_would_have(folder: Path) -> None:
    """From its 4 steps to 8: the history that the earlier revision wrote."""
    dataset = load_dataset("basic_motions")
    text = (EARLIER / "sweep.yaml").read_text().replace("training.steps=4", "training.steps=8")
    (folder / "longer.yaml").write_text(text)
    (cell,) = read_sweep(folder / "longer.yaml").cells()
    pretrain(cell.config, dataset, folder / RUN, resume=True)
    found = read_history(folder / RUN / HISTORY)
    recorded = read_history(EARLIER / "resumed-history.json")
    assert found.keys() == recorded.keys()
    for series in recorded:
        compare(found[series], recorded[series])


def test_an_earlier_encoder_is_probed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, with its features made again as they were; its rows are added to."""
    earlier = read_results(folder / RUN / "probes.json")
    method = load_method(folder / RUN / CHECKPOINT, load_dataset("basic_motions").inputs)
    assert sum(p.numel() for p in method.parameters()) > 0
    cache = folder / RUN / "features-basic_motions.pt"
    kept = torch.load(cache, weights_only=True)
    assert main(["probe", str(folder / RUN), "--protocol", "few-5", "knn"]) == 0
    assert "few-5" in capsys.readouterr().out
    made = torch.load(cache, weights_only=True)
    assert "fingerprint" not in kept["key"]  # nobody knows which data they were of
    assert "fingerprint" in made["key"]
    for part in ("train", "test"):
        torch.testing.assert_close(made[part], kept[part], rtol=1e-3, atol=1e-5)
    rows = {row.protocol: row for row in read_results(folder / RUN / "probes.json")}
    assert rows.keys() == {"tuned", "few-5", "knn"}
    (few,) = [row for row in earlier if row.protocol == "few-5"]
    compare(rows["few-5"].value, few.value, relative=0.1)
