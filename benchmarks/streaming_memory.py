"""Peak memory of preparing made files of 1 GB: a HIGGS table and a Pfam list, which are streamed.

    python benchmarks/streaming_memory.py
    python benchmarks/streaming_memory.py --megabytes 100 --out /tmp/small.json

Each set is prepared in a process of its own, whose peak resident memory is compared with what the
process holds before it reads the first byte (Python, NumPy and torch).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SETS = {"higgs": "HIGGS.csv", "pfam": "pfam/pfam_train.json"}
RESIDUES = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def make(name: str, data_dir: Path, size: int) -> Path:
    """A file of a set in its published form, of at least ``size`` bytes."""
    rng = np.random.default_rng(0)
    path = data_dir / SETS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_higgs(path, size, rng) if name == "higgs" else make_pfam(path, size, rng)
    return path


def make_higgs(path: Path, size: int, rng: np.random.Generator) -> None:
    rows = np.hstack([rng.integers(0, 2, (5000, 1)), rng.normal(size=(5000, 28))])
    block = "".join(",".join(f"{value:.18e}" for value in row) + "\n" for row in rows).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)


def make_pfam(path: Path, size: int, rng: np.random.Generator) -> None:
    records = [
        {
            "primary": RESIDUES[rng.integers(0, 20, rng.integers(30, 500))].tobytes().decode(),
            "protein_length": 100,
            "clan": int(rng.integers(0, 623)),
            "family": int(rng.integers(0, 17_000)),
            "id": f"UniRef100_{number:010d}/1-100",
        }
        for number in range(5000)
    ]
    block = json.dumps(records)[1:-1].encode()
    with path.open("wb") as file:
        file.write(b"[" + block)
        while file.tell() < size:
            file.write(b", " + block)
        file.write(b"]")
    path.with_name("pfam_valid.json").write_bytes(b"[" + block + b"]")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, data_dir: Path) -> dict[str, float]:
    """Prepare a set in this process, and compare its peak memory with that before."""
    from metamae.data.preparing.prepare import prepare
    from metamae.data.sources import get_source

    source, before, start = get_source(name), peak_mib(), time.perf_counter()
    done = prepare(source, data_dir, partial=True)
    seconds, peak = time.perf_counter() - start, peak_mib()
    data = done.dataset()
    data.need("pretrain").batch(range(256))
    return {
        "rows": sum(len(data.need(part)) for part in ("pretrain", "train", "test")),
        "prepared_mib": sum(told["bytes"] for told in done.manifest["arrays"].values()) / 2**20,
        "seconds": round(seconds, 1),
        "before_mib": round(before, 1),
        "peak_mib": round(peak, 1),
        "peak_with_first_batch_mib": round(peak_mib(), 1),
        "grown_mib": round(peak - before, 1),
    }


def run(name: str, size: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = make(name, Path(folder), size)
        given = path.stat().st_size / 2**20
        command = [sys.executable, __file__, "--measure", name, "--data-dir", folder]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    row = {"dataset": name, "file": path.name, "file_mib": round(given, 1)}
    row |= json.loads(done.stdout)
    print(f"{name}: {given:.0f} MiB read, peak {row['peak_mib']} MiB, grown {row['grown_mib']} MiB")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="size of each made file")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "streaming-memory.json")
    parser.add_argument("--measure", choices=tuple(SETS), help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.data_dir)))
        return
    import torch

    from metamae.files import write_json
    from metamae.training.provenance import device_name, versions

    rows = [run(name, options.megabytes * 1_000_000) for name in SETS]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    told = {"hardware": device_name(torch.device("cpu")), "date": date, **versions()}
    write_json(options.out, {"about": told, "rows": rows})


if __name__ == "__main__":
    main()
