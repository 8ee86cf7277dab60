"""Command lines, wrong, odd and right: a complete result, or one line and exit code 2."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from metamae.cli import main as cli
from metamae.experiments.sweep_file import read_sweep
from metamae.report.rows import read_results
from metamae.training.checkpoint import Checkpoint
from metamae.training.soundness import all_finite
from tests.attacks.running import SETTINGS, TINY, sample, tell

LINES = 600
NUMBERS = (
    *("0", "1", "2", "3", "-1", "1.5", "1e-9", "1e38", "nan", "inf", "-inf", ".inf", ".nan", "''"),
    *("x", "true", "null", "[1]", "{a: 1}", "1000000000000", "18446744073709551616", "9" * 5000),
)
"""Values of any setting."""
LARGE = ("1000000000000", "18446744073709551616", "9" * 5000)
SLOW = {"training.steps", "probe.epochs", "adaptation.steps", "encoder.depth", "decoder.depth"}
"""Settings of which a large right value only takes long."""
KEYS = (
    *("encoder.width", "encoder.depth", "encoder.heads", "encoder.mlp_ratio", "encoder.dropout"),
    *("decoder.width", "decoder.depth", "decoder.heads", "decoder.mlp_ratio", "decoder.attention"),
    *("masking.mask_ratio", "masking.nearby_ratio", "adaptation.step_size", "adaptation.steps"),
    *("adaptation.differentiation", "adaptation.chunk_size", "adaptation.learned"),
    *("contrast.weight", "contrast.temperature", "contrast.hidden", "contrast.out"),
    *("baseline.corruption", "baseline.emix.alpha", "baseline.capri.temperature"),
    *("training.steps", "training.batch_size", "training.learning_rate", "training.weight_decay"),
    *("training.autocast", "training.log_every", "training.checkpoint_every", "probe.epochs"),
    *("probe.batch_size", "probe.learning_rate", "probe.weight_decay", "probe.standardise"),
    *("learn.held_out", "learn.reference_ratios", "token_size", "seed", "dataset", "nonsense"),
    *("encoder", "encoder.", ".", "encoder..width", "encoder.width.more"),
)
WORDS = {
    "adaptation.differentiation": ("unrolled", "first_order", "checkpointed", "finite_difference"),
    "training.autocast": ("off", "bfloat16"),
    "decoder.attention": ("self", "cross"),
    "adaptation.learned": ("none", "scalar", "channel", "step"),
}
DATASETS = ("basic_motions",) * 12 + ("digits", "sensor", "pamap2", "", "../x", "BASIC_MOTIONS")
METHODS = ("mae", "metamae", "capri", "emix", "shed", "mae_linear", "supervised", "random")
SEEDS = ("0", "7", "-1", "1.5", "x", "", "18446744073709551615", "18446744073709551616")
DEVICES = ("cpu", "auto", "gpu", "cuda:9", "", "meta", "cpu:x")
PROTOCOLS = (
    *("published", "tuned", "knn", "few-1", "few-5", "few-0", "few--1", "few-x", "few-99999999999"),
    *("all", "", "KNN", "few-" + "9" * 30),
)
PLACES = ("run", "fresh", "fresh/deep/er", "a_file", "a_file/below", "run/checkpoint.pt", "", ".")
SWEEP_VALUES = {
    "datasets": (["basic_motions"], ["nope"], [], "basic_motions", None, {"basic_motions": {}}),
    "methods": (["random"], ["mae"], [], "mae", [3], ["mea"], None),
    "seeds": (1, 2, 0, -1, True, 100_000_000_000, [0, 0], [2**64], ["x"], 1.5, None, []),
    "protocols": (["knn"], ["few-1"], ["none"], [], "knn", [["knn"]]),
    "overrides": ([*TINY, "training.steps=1"], ["encoder.width=nan"], [3], "x", [*TINY, "a=b"]),
    "preset": ("pocket", "paper", "nope", 3),
    "variants": ({"a": {}}, {"a/b": {}}, {"": {}}, {"a": {"ablation": "x"}}, [], {3: {}}),
    "more": (1,),
}


class Lines:
    """Draws one command line after the other from a seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = random.Random(seed), folder

    def line(self) -> list[str]:
        kinds: tuple[Callable[[], list[str]], ...] = (
            *(self.pretrain,) * 5,
            *(self.probe,) * 2,
            *(self.sweep,) * 2,
            self.report,
            self.data,
            self.nonsense,
        )
        return self.random.choice(kinds)()

    def some(self, chance: float, *flags: str) -> list[str]:
        return [*flags] if self.random.random() < chance else []

    def setting(self, keys: tuple[str, ...] = KEYS) -> list[str]:
        key = self.random.choice(keys)
        values = [v for v in NUMBERS if key not in SLOW or v not in (*LARGE, "1e38")]
        value = self.random.choice([*values, *WORDS.get(key, ()) * 5])
        return ["--set", f"{key}={value}"]

    def pretrain(self) -> list[str]:
        pick = self.random.choice
        steps = ["--set", "training.steps=2"]
        line = [
            "pretrain",
            pick(DATASETS),
            *SETTINGS,
            *steps,
            "--method",
            pick((*METHODS * 2, "mea")),
        ]
        for _ in range(pick((0, 0, 1, 2))):
            line += self.setting()
        line += self.some(0.2, "--seed", pick(SEEDS)) + self.some(0.2, "--device", pick(DEVICES))
        line += self.some(0.1, "--preset", pick(("pocket", "paper", "nope")))
        line += self.some(0.3, "--resume")
        return [*line, "--out", pick((*("fresh",) * 6, *PLACES))]

    def probe(self) -> list[str]:
        pick = self.random.choice
        line = ["probe", pick((*("run",) * 5, *PLACES))]
        line += self.some(0.7, "--protocol", *self.random.sample(PROTOCOLS, pick((1, 1, 2))))
        line += self.some(0.2, "--seeds", pick(("1", "2", "0", "-1", "x", "1000000000000")))
        line += self.some(0.2, "--on", pick(DATASETS)) + self.some(0.2, "--device", pick(DEVICES))
        keys = ("probe.epochs", "probe.learning_rate", "probe.batch_size", "training.steps")
        return line + (self.setting(keys) if self.random.random() < 0.3 else [])

    def sweep(self) -> list[str]:
        pick = self.random.choice
        spec = {name: values[0] for name, values in SWEEP_VALUES.items() if name != "more"}
        for name in self.random.sample(list(SWEEP_VALUES), pick((0, 1, 1, 2))):
            spec[name] = pick(SWEEP_VALUES[name])
        path = self.folder / "small.yaml"
        path.write_text(pick((*(yaml.safe_dump(spec),) * 8, "", "[", "a: b", "\x00", "- " * 3000)))
        line = ["sweep", pick((*("small.yaml",) * 6, "nowhere.yaml", "run", "a_file"))]
        line += self.some(0.2, "--workers", pick(("0", "-1", "x", "1")))
        line += self.some(0.2, "--list") + self.some(0.1, "--device", pick(DEVICES))
        return [*line, "--out", pick((*("fresh",) * 4, *PLACES))]

    def report(self) -> list[str]:
        pick = self.random.choice
        line = ["report", pick((*("run",) * 3, *PLACES, "nowhere"))]
        line += self.some(0.3, "--method", pick((*METHODS, "mea")))
        line += self.some(0.3, "--against", pick((*METHODS, "mea")))
        line += self.some(0.2, "--markdown", pick(("report.md", "a_file/x.md", "run")))
        line += self.some(0.2, "--rows", pick(("rows.json", "a_file/x.json", "run")))
        return line + self.some(0.1, "--figure", pick(("a.svg", "a.txt", "a_file/x.svg")))

    def data(self) -> list[str]:
        pick = self.random.choice
        line = ["data", pick(("list", "check", "prepare", "nope"))]
        line += self.some(0.8, pick(("higgs", "pamap2", "all", "higs", "")))
        line += self.some(0.8, "--data-dir", pick((*("empty",) * 3, *PLACES)))
        return line + self.some(0.3, pick(("--verify", "--again", "--option", "--nope")))

    def nonsense(self) -> list[str]:
        pieces = [
            "pretrain",
            "probe",
            "--set",
            "--out",
            "x",
            "",
            "-",
            "--",
            "--help",
            "\udcff",
            "=",
            "é",
        ]
        return [self.random.choice(pieces) for _ in range(self.random.randint(0, 4))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, an empty folder and a file where a folder is expected."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("text")
    line = ["pretrain", "basic_motions", *SETTINGS, "--set", "training.steps=2", "--method", "mae"]
    assert cli.main([*line, "--out", "run"]) == 0
    assert cli.main(["probe", "run", "--protocol", "knn"]) == 0
    shutil.copytree(tmp_path / "run", tmp_path.parent / f"{tmp_path.name}-spare")
    return tmp_path


def complete(line: list[str], folder: Path, out: str) -> None:
    """What a command that ended with 0 has to have left."""
    if "--help" in line or "-h" in line:
        assert "usage: " in out
    elif line[0] == "pretrain":
        run = folder / line[-1]
        done = Checkpoint.load(run / "checkpoint.pt")
        assert done.step == done.config.training.steps
        assert all_finite(done.model)
        assert done.data
        json.loads((run / "history.json").read_text())
    elif line[0] == "probe":
        assert read_results(folder / line[1] / "probes.json")
    elif line[0] == "sweep":
        cells = read_sweep(folder / line[1]).cells()
        keys = {row.key for row in read_results(folder / line[-1] / "results.json")}
        assert "--list" in line or {key for cell in cells for key in cell.keys} <= keys
    else:
        assert out.strip()


def test_command_lines(
    folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()
    for number in sample(range(LINES), 60, request):
        shutil.rmtree(folder / "fresh", ignore_errors=True)
        line = Lines(number, folder).line()
        capsys.readouterr()
        try:
            code = cli.main(line)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as fault:
            raise AssertionError(f"line {number}: {line}") from fault
        out, err = capsys.readouterr()
        where = f"line {number}: {line}\n{code}\n{out[-2000:]}\n{err[-2000:]}"
        if code == 0:
            complete(line, folder, out)
            counts["complete"] += 1
        elif code == 1:  # a cell of a sweep failed, or data are not there: said at the end
            assert line[0] in ("sweep", "data"), where
            assert "Error: " in err or line[0] == "data", where
            counts["failed in part, and said"] += 1
        else:
            assert code == 2, where
            assert err.startswith("error: "), where
            assert err.count("\n") == 1, where
            counts["refused in one line"] += 1
        if not (folder / "run" / "checkpoint.pt").is_file():
            shutil.copytree(
                folder.parent / f"{folder.name}-spare", folder / "run", dirs_exist_ok=True
            )
    tell("command lines", counts, capsys)
    assert torch.get_num_threads() == 1
