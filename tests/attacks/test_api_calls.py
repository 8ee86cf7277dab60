"""Public functions with odd arguments: each works, or raises an error that somebody meant."""

from __future__ import annotations

import math
import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn import MetalearnError
from metamae import MetamaeError, build_method, load_dataset, make_config
from metamae.config import ProbeConfig, load_preset, override
from metamae.data import Affine, Dataset, Partition, Task, read_card
from metamae.data.dataset import labelled_batch
from metamae.data.fingerprint import fingerprint
from metamae.data.looking import look_at
from metamae.evaluation import (
    Features,
    evaluate,
    extract_features,
    fit_tuned,
    hold_out,
    labels_of,
    run_features,
)
from metamae.experiments.plan import Source, Sweep, resolve
from metamae.experiments.sweep_file import read_sweep
from metamae.inputs import Image, Signal, Tabular, Tokens, check_batch
from metamae.methods import register_method
from metamae.model.masking import Masking, neighbour_table, visible_count
from metamae.report.rows import find_results, read_results
from metamae.training import Checkpoint, choose_device, load_method, pretrain, read_history
from tests import ROOT
from tests.attacks.running import TINY, sample, tell

CALLS = 300
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 3, 2**64, 10**30, 0.5, 1e38, math.nan, math.inf, "", "x", b"x"),
    *((), [], {}, [1], (1, 2), {"a": 1}, np.zeros(3), np.zeros((0, 2)), torch.zeros(2, 3)),
    *(torch.zeros(0), object(), Path("nowhere"), np.array(["a", "b"]), 1j),
)
"""For any parameter."""


def raw(*shape: int, **changes: Any) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(changes.get("dtype", np.float32))


def spoilt(value: Any, *shape: int) -> Any:
    values = raw(*shape)
    values.flat[-1] = value
    return values


SIGNAL = Signal(name="signal", channels=2, length=8, token_length=2)
DNA = Tokens(name="dna", length=4, vocabulary=4)
BINARY = Task(kind="binary", metric="accuracy", classes=("a", "b"))
THREE = Task(kind="classification", metric="accuracy", classes=("a", "b", "c"))
REGRESSION = Task(kind="regression", metric="spearman")
SIGNALS = (
    *(raw(40, 2, 8), raw(40, 2, 8) * 1e4, raw(1, 2, 8), raw(0, 2, 8), raw(40, 2, 7), raw(40, 2)),
    *(np.zeros((40, 2, 8)), spoilt(math.nan, 40, 2, 8), spoilt(math.inf, 40, 2, 8)),
    *(raw(40, 2, 8, dtype=complex), raw(40, 2, 8).astype(str), raw(40, 2, 8).astype(object)),
    *(np.ones((40, 2, 8), bool), (raw(40, 2, 8) * 100).astype(np.int16)),
)
SYMBOLS = (
    *(np.zeros((40, 4), int), np.full((40, 4), 1.7), np.full((40, 4), math.nan)),
    *(np.full((40, 4), 4), np.full((40, 4), -1), np.full((40, 4), 2.0), np.full((40, 4), "a")),
)
LABELS = (
    *(np.arange(40) % 2, np.arange(40) % 3, np.zeros(40, int), np.full(40, 5), np.arange(40) * 1.7),
    *(np.array(["a", "b"] * 20), np.full(40, math.nan), np.arange(39) % 2, np.zeros((40, 1))),
    *(list(range(40)), None, np.arange(40) % 2 == 0, np.array([0]), np.array([], int)),
)
ROWS = (
    *(torch.randn(40, 3), torch.randn(40, 3).double(), torch.randn(1, 3), torch.randn(0, 3)),
    *(torch.full((40, 3), math.nan), torch.zeros(40, 3), torch.randn(40), torch.randn(40, 0)),
    *(raw(40, 3), torch.zeros(40, 3, dtype=torch.int64), torch.randn(40, 4), None),
)
TASKS = (BINARY, THREE, REGRESSION, Task(kind="classification", metric="accuracy", classes=("a",)))


def make_set(signals: Any, labels: Any, task: Any) -> Dataset:
    labelled = Partition(arrays={"signal": signals}, inputs=(SIGNAL,), labels=labels)
    plain = Partition(arrays={"signal": signals}, inputs=(SIGNAL,))
    return Dataset(
        name="own", inputs=(SIGNAL,), task=task, pretrain=plain, train=labelled, test=labelled
    )


def use_set(signals: Any, labels: Any, task: Any, method: Any, folder: Path, *settings: str) -> Any:
    dataset = make_set(signals, labels, task)
    steps = ("training.steps=2", "masking.mask_ratio=0.5")
    config = resolve("basic_motions", "pocket", method, 0, [*TINY, *steps, *settings])
    done = pretrain(config, dataset, folder / f"run-{random.getrandbits(40)}")
    assert done.steps in (0, 2)
    assert all(bool(torch.isfinite(p).all()) for p in done.method.parameters())
    return done


def use_rows(train: Any, labels: Any, test: Any, tested: Any, task: Any, protocol: Any) -> float:
    features = Features(task=task, train=train, train_labels=labels, test=test, test_labels=tested)
    value = evaluate(protocol, features, ProbeConfig(epochs=2)).value
    assert math.isfinite(value)
    return value


def use_symbols(values: Any, rows: Any) -> Any:
    batch = Partition(arrays={"dna": values}, inputs=(DNA,)).batch(rows)["dna"]
    assert bool((batch == torch.from_numpy(np.asarray(values[rows], np.float64))).all())
    return batch


@dataclass(frozen=True)
class Call:
    """A function, and values of its arguments: right and wrong ones."""

    function: Callable[..., Any]
    values: tuple[tuple[Any, ...], ...]
    odd: bool = True


def calls(folder: Path) -> list[Call]:
    config, sensors = make_config("sensors"), load_dataset("basic_motions")
    method = build_method(make_config("basic_motions", overrides=[*TINY]), sensors.inputs)
    paths = (folder, folder / "nowhere", folder / "file", ROOT / "pyproject.toml")
    names = ("sensors", "digits", "nope", "")
    protocols = ("published", "tuned", "knn", "few-1", "few-5", "few-50", "nope")
    methods = ("mae", "metamae", "capri", "emix", "shed", "supervised", "random", "mea")
    rows = (slice(None), [0, 1], torch.tensor([1]), [99], slice(5, 2))
    return [
        Call(make_config, (names,)),
        Call(lambda preset: make_config("sensors", preset=preset), (("paper", "nope"),)),
        Call(lambda seed: make_config("sensors", seed=seed), ((0, 2**64, -1),)),
        Call(lambda text: override(config, [text]), (("training.steps=3", "a", "=", "a=[", "a="),)),
        Call(load_preset, (("pocket", "nope"), names)),
        Call(load_dataset, (names,)),
        Call(lambda size: load_dataset("digits", token_size=size), (((2, 2), (3,), (0,), (-2,)),)),
        Call(read_card, (names,)),
        Call(lambda n, s: Signal(name="a", channels=n, length=8, token_length=s), ((1,), (2,))),
        Call(
            lambda n, p: Image(name="a", channels=n, height=8, width=8, patch=p),
            ((1,), ((2, 2), 3)),
        ),
        Call(lambda n: Tabular(name="a", columns=n), ((1, 5),)),
        Call(lambda n, v: Tokens(name="a", length=n, vocabulary=v), ((1,), (4,))),
        Call(SIGNAL.patchify, ((torch.zeros(1, 2, 8), torch.zeros(1, 2, 7)),)),
        Call(DNA.patchify, ((torch.zeros(1, 4).long(), torch.full((1, 4), 9)),)),
        Call(lambda b: check_batch((SIGNAL,), b), (({"signal": torch.zeros(1, 2, 8)}, {}),)),
        Call(visible_count, ((8, 1), (0.5, 0.99))),
        Call(lambda m, n: Masking((SIGNAL,), m, n), ((0.5, 1.0), (0.1, 2))),
        Call(neighbour_table, (((SIGNAL,), (SIGNAL, DNA)),), odd=False),
        Call(Affine, ((np.zeros(1), np.array([math.nan])), (np.ones(1), np.zeros(1)))),
        Call(lambda k, c: Task(kind=k, metric="accuracy", classes=c), (("binary",), (("a", "b"),))),
        Call(use_symbols, (SYMBOLS, (slice(None), slice(0, 3))), odd=False),
        *[Call(make_set, (SIGNALS, LABELS, TASKS), odd=False)] * 3,
        *[
            Call(
                lambda s, y, t, m: use_set(s, y, t, m, folder),
                (SIGNALS, LABELS[:2] * 3 + LABELS, TASKS, methods),
                odd=False,
            )
        ]
        * 6,
        *[Call(use_rows, (ROWS, LABELS, ROWS, LABELS, TASKS, protocols), odd=False)] * 4,
        *[
            Call(
                use_rows,
                (ROWS[:1], LABELS[:2] + LABELS, ROWS[:1], LABELS[:2], TASKS, protocols),
                odd=False,
            )
        ]
        * 4,
        Call(lambda r: sensors.need("train").batch(r), (rows,), odd=False),
        Call(lambda r: labelled_batch(sensors.need("train"), r), (rows,), odd=False),
        Call(lambda p: sensors.need(p), (("pretrain", "test"),)),
        Call(lambda s: look_at(sensors.need("pretrain"), seed=s), ((0, 5),)),
        Call(
            lambda s: look_at(Partition(arrays={"signal": s}, inputs=(SIGNAL,))),
            (SIGNALS,),
            odd=False,
        ),
        Call(
            lambda s: fingerprint(make_set(s, LABELS[0], BINARY)),
            (SIGNALS,),
            odd=False,
        ),
        Call(
            lambda size: extract_features(method, sensors.need("test"), batch_size=size),
            ((7, 256),),
        ),
        Call(labels_of, (protocols,)),
        Call(hold_out, (LABELS[:4],)),
        Call(
            lambda x, y: fit_tuned(x, y, BINARY), ((raw(40, 3), raw(1, 3)), LABELS[:3]), odd=False
        ),
        Call(choose_device, (("cpu", "auto", "cuda:7", "x"),)),
        Call(resolve, (names, ("pocket", "paper", "nope"), methods, (0, -1, 2**64))),
        Call(lambda s: Sweep(datasets={"sensors": Source()}, seeds=s).cells(), (((0,), ()),)),
        Call(lambda p: Sweep(datasets={"sensors": Source()}, protocols=p), ((("knn",), ()),)),
        Call(read_sweep, (paths,)),
        Call(read_history, (paths,)),
        Call(read_results, (paths,)),
        Call(lambda path: find_results([path]), (paths,)),
        Call(Checkpoint.load, (paths,)),
        Call(lambda path: load_method(path, sensors.inputs), (paths,)),
        Call(lambda path: run_features(path, sensors), (paths,)),
        Call(lambda name: register_method(name, lambda *_: method), (("mae", "metamae"),)),
    ]


def meant(fault: Exception) -> bool:
    """Whether an error was raised on purpose: by name, or by our own check, or at the call."""
    if isinstance(fault, MetamaeError | MetalearnError | OSError):
        return bool(str(fault))
    frames = traceback.extract_tb(fault.__traceback__)
    last = Path(frames[-1].filename)
    ours = any(last.is_relative_to(ROOT / name) for name in ("metamae", "metalearn"))
    bare = frames[-1].line is not None and not frames[-1].line.startswith("raise")
    return (
        isinstance(fault, ValueError | TypeError)
        and (last == Path(__file__) or ours)
        and not (ours and bare and isinstance(fault, ValueError))
    )


def arguments_of(call: Call, draw: random.Random) -> list[Any]:
    chosen = [draw.choice(values) for values in call.values]
    if call.odd and draw.random() < 0.6:
        chosen[draw.randrange(len(chosen))] = draw.choice(ODD)
    return chosen


@pytest.mark.filterwarnings("ignore::metamae.errors.DataWarning")
def test_api_calls(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text")
    known, counts = calls(tmp_path), Counter[str]()
    wrong = []
    for number in sample(range(2 * CALLS), CALLS // 3, request):
        draw = random.Random(number)
        call = known[number % len(known)]
        arguments = arguments_of(call, draw)
        try:
            call.function(*arguments)
            counts["worked"] += 1
        except Exception as fault:
            counts["refused"] += 1
            if not meant(fault):
                frame = traceback.extract_tb(fault.__traceback__)[-1]
                shown = ", ".join(repr(a)[:60].replace("\n", " ") for a in arguments)
                place = f"{Path(frame.filename).name}:{frame.lineno}"
                wrong.append(f"{number}: ({shown}) {fault!r} at {place}"[:400])
    assert not wrong, "\n".join(wrong)
    tell("API calls", counts, capsys)
