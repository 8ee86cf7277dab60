"""Odd files in a run folder, and what killed runs leave: one line, or made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamae.config.presets import make_config
from metamae.data import load_dataset
from metamae.data.preparing.prepared import MANIFEST
from metamae.evaluation.feature_cache import run_features
from metamae.experiments.plan import Source, Sweep
from metamae.experiments.sweep import FAILURES, SweepRun
from metamae.experiments.sweep_file import read_sweep
from metamae.files import clear_leftovers, replacing, write_text
from metamae.report.rows import read_results, write_results
from metamae.training.checkpoint import Checkpoint, save_tensors
from metamae.training.pretraining import pretrain
from metamae.training.run_folder import read_config, read_history
from tests import ROOT
from tests.attacks.harness import Attack
from tests.metamae.data.making import made, put
from tests.metamae.report.test_tables import row

CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n\t\n",
    "zeros": bytes(300),
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "latin letters": '{"loss": "\xe9"}'.encode("latin1"),
    "a zip archive": b"PK\x03\x04" + bytes(range(256)),
    "null": b"null",
    "a number": b"5",
    "a huge number": b"9" * 10_000,
    "a text": b'"x"',
    "a list of lists": b"[[]]",
    "a list of numbers": b"[1, 2]",
    "a list of null": b"[null]",
    "an object of lists": b'{"loss": [1, 2], "arrays": [], "dataset": []}',
    "NaN": b'{"loss": [[1, NaN]], "value": NaN}',
    "infinity": b'{"loss": [[1, 1e999]], "value": -Infinity}',
    "texts for numbers": b'{"loss": ["ab", "cd"], "seed": "x"}',
    "true for numbers": b'{"loss": [[true, 1]], "seed": true}',
    "deep lists": b"[" * 100_000,
    "deep and closed": b'{"loss": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "a key twice": b'{"loss": [[1, 2]], "loss": []}',
    "an open text": b'{"loss": "',
    "half a file": b'{"loss": [[1, 0.5], [2, 0.',
    "two values": b"{}{}",
    "an alias of itself": b"&a [*a]",
    "a tag that runs": b"!!python/object/apply:os.system ['exit 1']",
    "a long text": b'{"x": "' + b"y" * 1_000_000 + b'"}',
    "long keys": b'{"' + b"y" * 1_000_000 + b'": 1}',
    "many lines": b"- x: [\n" * 1_000,
    "paths": b'{"format": 1, "name": "higgs", "arrays": {"../../x": {}}, "partitions": {}}',
}


def odd_values() -> Iterator[Any]:
    yield from (None, True, -1, 1.5, "x", [], [1], {}, {"x": 1}, [[]], "x" * 1000, 2**70)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    overrides = ["training.steps=2", "encoder.width=8"]
    pretrain(
        make_config("basic_motions", method="mae", overrides=overrides),
        load_dataset("basic_motions"),
        folder,
    )
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_config,
    "history.json": lambda folder: read_history(folder / "history.json"),
    "probes.json": lambda folder: read_results(folder / "probes.json"),
    "sweep.yaml": lambda folder: read_sweep(folder / "sweep.yaml"),
    "checkpoint.pt": lambda folder: Checkpoint.load(folder / "checkpoint.pt"),
}


@pytest.mark.parametrize("name", READERS)
def test_another_content_is_refused(name: str, run_dir: Path, tmp_path: Path) -> None:
    attack = Attack(f"odd files: {name}", lambda: READERS[name](tmp_path), "nothing that is read")
    for what, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        assert attack.try_once(f"{name}: {what}") == "refused"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    if name not in ("sweep.yaml", "checkpoint.pt"):
        with pytest.raises((OSError, ValueError, RuntimeError), match=r"^[^\n]+$"):
            READERS[name](tmp_path)


def test_an_entry_of_another_type_is_refused(tmp_path: Path) -> None:
    """Or it is the same file: every entry of a row and of a manifest takes every odd value."""
    path = tmp_path / "results.json"
    write_results(path, [row()])
    good = json.loads(path.read_text())[0]
    attack = Attack("odd entries: results", lambda: len(read_results(path)), 1)
    for key in good:
        for value in odd_values():
            path.write_text(json.dumps([good | {key: value}]))
            attack.try_once(f"{key} = {value!r}")
    put(tmp_path / "HIGGS.csv.gz", b"".join(higgs_lines()))
    manifest = made("higgs", tmp_path).folder / MANIFEST
    entries = json.loads(manifest.read_text())

    def load() -> Any:
        data = load_dataset("higgs", data_dir=tmp_path)
        return [
            np.asarray(data.need(part).batch([0])["row"]).tolist() for part in ("train", "test")
        ]

    attack = Attack("odd entries: manifest", load, load())
    for key in entries:
        for value in odd_values():
            manifest.write_text(json.dumps(entries | {key: value}))
            if key not in ("partitions", "facts", "options") or value != {}:
                attack.try_once(f"{key} = {value!r}")
    for section, key in (("arrays", "rows"), ("partitions", "train")):
        for inner in entries[section][key]:
            for value in odd_values():
                changed = entries[section][key] | {inner: value}
                both = entries | {section: entries[section] | {key: changed}}
                manifest.write_text(json.dumps(both))
                if (inner, value) not in (("index", None), ("modified", None)):
                    attack.try_once(f"{section}.{key}.{inner} = {value!r}")


def higgs_lines() -> Iterator[bytes]:
    from tests.metamae.data.formats.test_tables import higgs_line

    return (higgs_line(i % 2, i).encode() for i in range(100))


def test_a_prepared_set_with_another_manifest(tmp_path: Path) -> None:
    put(tmp_path / "HIGGS.csv.gz", b"".join(higgs_lines()))
    path = made("higgs", tmp_path).folder / MANIFEST
    attack = Attack(
        "odd files: manifest.json", lambda: load_dataset("higgs", data_dir=tmp_path), None
    )
    for what, content in CONTENTS.items():
        path.write_bytes(content)
        assert attack.try_once(what) == "refused"


def test_odd_entries_of_a_checkpoint(run_dir: Path, tmp_path: Path, whole: bool) -> None:
    payload = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    path = tmp_path / "checkpoint.pt"
    attack = Attack("odd entries: checkpoint", lambda: Checkpoint.load(path).step, 2)
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    for number, key in enumerate(payload):
        values = (*odd_values(), deep, torch.zeros(3), float("nan"))
        for value in values if whole else values[number % 5 :: 5]:
            save_tensors(path, payload | {key: value})
            outcome = attack.try_once(f"{key} = {str(value)[:40]}")
            counts = key in ("step", "seconds") and type(value) in (int, float)
            counts = counts or (key == "data" and value == "")
            right = isinstance(value, dict) or counts
            assert outcome == "refused" or right


def test_odd_feature_caches_are_made_again(run_dir: Path) -> None:
    dataset, path = load_dataset("basic_motions"), run_dir / "features-basic_motions.pt"

    def same(found: Any, expected: Any) -> bool:
        return torch.equal(found.train, expected.train) and torch.equal(found.test, expected.test)

    expected = run_features(run_dir, dataset)
    key = torch.load(path, weights_only=True)
    attack = Attack("odd feature caches", lambda: run_features(run_dir, dataset), expected, same)
    caches: list[Any] = [{"key": key["key"]}, {}, [], None, key | {"more": 1}]
    caches += [key | {"train": value} for value in (None, [1], torch.zeros(3, 2), torch.zeros(()))]
    caches += [
        key | {"key": value} for value in (None, torch.zeros(2), [], key["key"] | {"rows": 1})
    ]
    for number, cache in enumerate(caches):
        save_tensors(path, cache)
        assert attack.try_once(f"cache {number}") == "unaffected"
    for what, content in list(CONTENTS.items())[:8]:
        path.write_bytes(content)
        assert attack.try_once(what) == "unaffected"


def test_a_record_of_failures_is_made_again(tmp_path: Path) -> None:
    sweep = Sweep(datasets={"basic_motions": Source()}, methods=("random",), seeds=(0,))
    run = SweepRun(sweep=sweep, out=tmp_path, device=torch.device("cpu"))
    attack = Attack("odd files: failures.json", lambda: run._old_failures(set()), {})
    for what, content in CONTENTS.items():
        (tmp_path / FAILURES).write_bytes(content)
        found = run._old_failures(set())
        assert all(isinstance(error, str) for error in found.values()), what
        attack.expected = found
        assert attack.try_once(what) == "unaffected"


WRITER = """
import sys, time
from pathlib import Path
from metamae.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    time.sleep(600)
"""


def start_writer(path: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_what_a_killed_writer_left_is_cleared_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    live, kept = start_writer(path)
    dead, gone = start_writer(path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert (tmp_path / gone).exists()
        write_text(path, "new")
        assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoint.pt", kept}
    finally:
        live.kill()
        live.wait()
        for process in (live, dead):
            assert process.stdout is not None
            process.stdout.close()
    clear_leftovers(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_run_that_is_resumed_clears_them_even_if_it_is_finished(run_dir: Path) -> None:
    leftover = run_dir / ".checkpoint.pt.k1ll3d_x"
    leftover.write_bytes(b"half a checkpoint")
    others = [run_dir / name for name in (".checkpoint.pt.txt", ".history", "checkpoint.pt.bak")]
    others[0] = run_dir / ".checkpoint.pt.notes.txt"
    for other in others:
        other.write_text("mine")
    Checkpoint.load(run_dir / "checkpoint.pt")
    assert not leftover.exists()
    for other in others:
        assert other.read_text() == "mine"
        other.unlink()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with replacing(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["x.json"]
    assert time.time() - path.stat().st_mtime < 60
