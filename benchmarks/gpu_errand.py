"""Everything a GPU is wanted for, in order of worth, within a budget: ``make cuda``.

    OUT=/tmp/gpu python benchmarks/gpu_errand.py --minutes 28
    python benchmarks/gpu_errand.py --tiny            # the same pieces in miniature, on a CPU

Each piece is a process of its own with a limit below nine minutes, so that a machine lent by the
command can run them one by one (``--piece NAME``); pieces whose rows are committed for this
revision and hardware are skipped. Rows go to ``benchmarks/results`` as ever, and copies of them
with a log to the folder that ``OUT`` names (``runs/cuda`` by default), as soon as each piece ends.
(A file called ``cuda.py`` here would hide NVIDIA's package of that name from torch.)

Of Python packages a machine with torch may lack: higher, betty-ml, rich, scikit-learn, soundfile,
tifffile, pytest, hypothesis, lmdb. Carry these as wheels; the rest of ``pyproject.toml`` usually
comes with torch. Compile what was unpacked (``python -m compileall``) before the tests, which take
a warning for an error: ``higher`` has an escape sequence that Python warns of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from metamae.files import write_json
from metamae.training.provenance import device_name, revision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STATE = "cuda-errand.json"
LIMIT = 520
"""Seconds of one piece: below nine minutes."""
QUIET = ("-q", "--tb=short", "--show-capture=no", "-p", "no:benchmark")
"""Of pytest: what was caught of torch's logs is thousands of lines, and its plugin for benchmarks
warns wherever several processes test."""
PAPER = (
    "imagenet32",
    "pamap2",
    "eurosat",
    "librispeech",
    "higgs",
    "genomics",
    "pfam",
    "wafermap",
    "mscoco",
)
"""Settings of the paper, those with the least arithmetic for a GPU first."""
LAST = ("sensors", "tabular", "genomes")
"""The largest pocket sets, which end the errand at the paper's sizes."""


@dataclass(frozen=True)
class Piece:
    """One process.

    Attributes:
        name: What it is called in the log.
        command: Arguments of Python.
        tiny: The same in miniature, for a CPU.
        results: Files in ``benchmarks/results`` that it writes.
        least: Seconds below which it is not worth starting.
    """

    name: str
    command: tuple[str, ...]
    tiny: tuple[str, ...]
    results: tuple[str, ...] = ()
    least: int = 60


def bench(select: str) -> tuple[str, ...]:
    """Arguments of a benchmark on CUDA."""
    flags = ("--benchmark", "--device", "cuda", *QUIET)
    return ("-m", "pytest", "benchmarks/", *flags, "-k", select)


def small(select: str) -> tuple[str, ...]:
    """Arguments of a benchmark on a CPU, one round."""
    flags = ("--benchmark", "--device", "cpu", "--rounds", "2", *QUIET)
    return ("-m", "pytest", "benchmarks/", *flags, "-k", select)


def pieces() -> list[Piece]:
    """All pieces, the most wanted first."""
    overhead = ("overhead-cuda.json", "overhead-cuda.md")
    training = ("training-cuda.json", "training-cuda.md")
    tests = ("-m", "pytest", *QUIET, "-k", "cuda")
    listed = [Piece("tests", (*tests, "tests"), (*tests, "tests/metalearn/test_cuda.py"))]
    eager, *others = (
        Piece(
            f"overhead-{name}",
            bench(f"overhead and {select}"),
            small("overhead and pocket and digits"),
            overhead,
            least,
        )
        for name, select, least in _variants()
    )
    listed += [
        eager,
        Piece("training", bench("training"), small("training and basic_motions"), training),
        Piece(
            "adapter",
            bench("adapter"),
            small("adapter and mlp and 1-"),
            ("adapter-cuda.json", "adapter-cuda.md"),
        ),
        *others,
        Piece("ranks", _ranks(max(1, torch.cuda.device_count())), _ranks(2, "--device", "cpu")),
    ]
    compiled = ("--set", "training.compile=on", "--set", "training.cuda_graphs=on")
    short = ("--preset", "pocket", "--set", "training.steps=2", "--device", "cpu")
    for name in LAST:
        for method in ("mae", "metamae"):
            out = ("--out", f"runs/cuda/{name}/default/{method}/seed-0", "--resume")
            command = ("-m", "metamae", "pretrain", name, "--method", method)
            paper = (*command, "--preset", "paper", *compiled, *out)
            listed.append(Piece(f"paper-{name}-{method}", paper, (*command, *short, *out)))
    return listed


def _ranks(count: int, *more: str) -> tuple[str, ...]:
    """A short run of so many processes: NCCL on CUDA, with one device too."""
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", str(count))
    short = ("--set", "training.steps=20", "--out", "runs/cuda/ranks", "--resume")
    return (*launch, "-m", "metamae", "pretrain", "sensors", "--method", "metamae", *short, *more)


def _variants() -> list[tuple[str, str, int]]:
    """Name of a piece, tests of it, seconds that it needs; compiling takes minutes a setting."""
    eager = [("eager", "paper and eager and self and float32 and unrolled", 60)]
    # CUDA graphs are on wherever a variant is compiled and the device is CUDA.
    compiled = [
        (f"{name}-{setting}", f"paper/{setting}-compiled and self and {dtype}", 150)
        for name, dtype in (("compiled", "float32"), ("bfloat16", "bfloat16"))
        for setting in PAPER
    ]
    return [
        *eager,
        *compiled,
        ("cross", "paper and eager and cross and float32", 60),
        ("memory", "paper and (checkpointed or chunked)", 60),
    ]


def read_state() -> dict[str, dict[str, object]]:
    """What is known of earlier errands, committed with the rows."""
    path = RESULTS / STATE
    return dict(json.loads(path.read_text())) if path.exists() else {}


def is_done(piece: Piece, state: dict[str, dict[str, object]], here: dict[str, str]) -> bool:
    """Whether the piece ended well for this revision and hardware."""
    entry = state.get(piece.name, {})
    return entry.get("ok") is True and all(entry.get(key) == value for key, value in here.items())


def run(
    command: Sequence[str], limit: float, log: Path, results: Path = RESULTS
) -> tuple[bool, float]:
    """Run Python with these arguments; whether it ended well, and after how many seconds."""
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("a") as file:
        file.write(f"$ python {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "BENCHMARK_RESULTS": str(results)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            # As Ctrl-C: training saves what it reached, and pytest tells what has failed so far.
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            file.write(f"stopped after {limit:.0f} s\n")
            return False, time.monotonic() - start
    return code in (0, 5), time.monotonic() - start  # 5: pytest found nothing to run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and fits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=28.0, help="budget of all of it (default: 28)")
    add("--piece", action="append", help="only this piece (repeatable)")
    add("--list", action="store_true", help="list the pieces, and which are done")
    add("--tiny", action="store_true", help="every piece in miniature, on a CPU")
    options = parser.parse_args(arguments)
    known = {piece.name: piece for piece in pieces()}
    unknown = [name for name in options.piece or () if name not in known]
    if unknown:
        parser.error(f"expected pieces among {', '.join(known)}, got {', '.join(unknown)}")
    device = torch.device("cpu" if options.tiny else "cuda")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("expected a CUDA device, found none; --tiny runs every piece on a CPU")
    here = {"revision": revision().removesuffix("-dirty"), "hardware": device_name(device)}
    state = {} if options.tiny else read_state()
    if options.list:
        for piece in known.values():
            print(f"{piece.name}: {'done' if is_done(piece, state, here) else 'to do'}")
        return 0
    out = Path(os.environ.get("OUT", ROOT / "runs" / "cuda"))
    out.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * options.minutes, 0
    for piece in known.values():
        if (options.piece and piece.name not in options.piece) or is_done(piece, state, here):
            continue
        left = end - time.monotonic()
        if left < (1 if options.tiny else piece.least):
            print(f"{piece.name}: no time left")
            continue
        command = piece.tiny if options.tiny else piece.command
        results = out / "results" if options.tiny else RESULTS
        results.mkdir(exist_ok=True)
        ok, seconds = run(command, min(LIMIT, left), out / f"{piece.name}.log", results)
        failed += not ok
        print(
            f"{piece.name}: {'done' if ok else 'NOT done, see its log'} in {seconds:.0f} s",
            flush=True,
        )
        state[piece.name] = {"ok": ok, "seconds": round(seconds), **here}
        write_json(out / STATE, state)
        if not options.tiny:
            write_json(RESULTS / STATE, state)
            for name in piece.results:
                if (RESULTS / name).exists():
                    shutil.copy(RESULTS / name, out / name)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
