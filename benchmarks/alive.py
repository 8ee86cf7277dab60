"""What is alive at the peak of a training step: bytes by phase and by operation.

    PYTHONPATH=$PWD python benchmarks/alive.py pamap2 librispeech --policy unrolled

Prints a table for each setting, largest first. Byte counts do not depend on timing, so they can be
taken on a busy machine. What a kernel allocates and frees inside is not seen; `memory.py` sees it.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from settings import SHAPES, Variant, configure, inputs_of, training_step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
Kind = tuple[str, str, tuple[int, ...]]


class Alive(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed.

    Attributes:
        phase: What the step is doing; whoever runs it sets this.
        peak: Most bytes alive at once.
        at_peak: Bytes by phase, operation and shape at that moment, and how many tensors.
        peak_phase: The phase of that moment.
    """

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self.phase, self.peak_phase = "forward", ""
        self.now = self.peak = 0
        self.bytes: Counter[Kind] = Counter()
        self.counts: Counter[Kind] = Counter()
        self.at_peak: dict[Kind, tuple[int, int]] = {}
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and note what is new among its results."""
        given = {self._key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and self._key(x) not in given:
                self._add(x, str(function).removeprefix("aten."))
        return result

    @staticmethod
    def _key(x: torch.Tensor) -> int:
        return x.untyped_storage()._cdata

    def _add(self, x: torch.Tensor, name: str) -> None:
        storage = x.untyped_storage()
        if storage._cdata in self.known:
            return
        kind, size = (self.phase, name, tuple(x.shape)), storage.nbytes()
        self.known.add(storage._cdata)
        self.now += size
        self.bytes[kind] += size
        self.counts[kind] += 1
        weakref.finalize(storage, self._remove, storage._cdata, kind, size)
        if self.now > self.peak:
            self.peak, self.peak_phase = self.now, self.phase
            self.at_peak = {k: (v, self.counts[k]) for k, v in self.bytes.items() if v}

    def _remove(self, key: int, kind: Kind, size: int) -> None:
        self.known.discard(key)
        self.now -= size
        self.bytes[kind] -= size
        self.counts[kind] -= 1


@contextmanager
def phases(alive: Alive) -> Iterator[None]:
    """Name what a step does, by what calls what."""
    from metalearn.adaptation import LatentAdapter
    from metamae.model.autoencoder import MaskedAutoencoder

    def marked(owner: type, method: str, before: str, after: str) -> Callable[[], None]:
        original = getattr(owner, method)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            alive.phase = before
            try:
                return original(*args, **kwargs)
            finally:
                alive.phase = after

        setattr(owner, method, wrapper)
        return lambda: setattr(owner, method, original)

    undo = [
        marked(MaskedAutoencoder, "support_loss", "inner forward", "inner backward"),
        marked(LatentAdapter, "__call__", "inner", "outer forward"),
        marked(torch.Tensor, "backward", "outer backward", "update"),
    ]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def measure(setting: str, method: str, variant: Variant) -> Alive:
    """A step, after one that warmed up."""
    run = training_step(configure(setting, method, variant, CPU), inputs_of(setting), CPU).run
    run()
    alive = Alive()
    with phases(alive), alive:
        run()
    return alive


def show(title: str, alive: Alive, lines: int) -> None:
    """Print what was alive."""
    print(f"\n{title}: {alive.peak / 2**20:.1f} MiB in {alive.peak_phase}")
    by_phase: Counter[str] = Counter()
    for (phase, _, _), (size, _) in alive.at_peak.items():
        by_phase[phase] += size
    for phase, size in by_phase.most_common():
        print(f"  {phase:16} {size / 2**20:8.1f}")
    largest = sorted(alive.at_peak.items(), key=lambda item: -item[1][0])
    for (phase, name, shape), (size, count) in largest[:lines]:
        print(f"    {size / 2**20:7.2f} {count:4d} x {phase:15} {name} {list(shape)}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="What is alive at the peak of a training step.")
    parser.add_argument("settings", nargs="*", default=list(SHAPES))
    parser.add_argument("--policy", default="unrolled")
    parser.add_argument("--lines", type=int, default=25)
    parser.add_argument("--method", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.settings:
        for method in [options.method] if options.method else ("mae", "metamae"):
            found = measure(f"paper/{name}", method, Variant(policy=options.policy))
            show(f"{name}, {method}", found, options.lines)


if __name__ == "__main__":
    main()
