"""Prefetched input: the same items in the same order, errors at their own step."""

from __future__ import annotations

import threading

import pytest
import torch

from metamae.inputs import Tabular
from metamae.methods.mae_contrast import PairedSplit
from metamae.model.masking import Masking
from metamae.model.split_set import SplitSet
from metamae.training.batches import Prefetcher, pin_draw


def test_the_next_item_is_prepared_in_another_thread_meanwhile() -> None:
    made: list[tuple[int, str]] = []
    ready = threading.Event()

    def prepare(step: int) -> int:
        made.append((step, threading.current_thread().name))
        if step == 1:
            ready.set()
        return 10 * step

    with Prefetcher(prepare, steps=3) as items:
        assert items.take(0) == 0
        assert ready.wait(5)  # without being asked for
        assert [items.take(1), items.take(2)] == [10, 20]
    assert [step for step, _ in made] == [0, 1, 2]
    assert made[0][1] == threading.current_thread().name
    assert all(name.startswith("prefetch") for _, name in made[1:])


def test_an_error_is_raised_at_its_own_step_and_leaving_waits_for_the_thread() -> None:
    def prepare(step: int) -> int:
        if step == 1:
            raise ValueError("bad row")
        return step

    with Prefetcher(prepare, steps=3) as items:
        assert items.take(0) == 0
        with pytest.raises(ValueError, match="bad row"):
            items.take(1)
        assert items.take(2) == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_steps_may_start_anywhere() -> None:
    with Prefetcher(lambda step: step, steps=9) as items:
        assert [items.take(step) for step in (4, 5, 2, 8)] == [4, 5, 2, 8]


def test_all_tensors_of_a_draw_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of draws inside of it too: of a second mask, and of several."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.long() + 1)
    masking = Masking((Tabular(name="row", columns=6),), mask_ratio=0.5)
    first, second = (masking.draw(2, torch.Generator().manual_seed(n)) for n in (0, 1))
    pair = pin_draw(PairedSplit.of(first, second))
    several = pin_draw(SplitSet.of([first, second]))
    assert isinstance(pair, PairedSplit)
    assert isinstance(several, SplitSet)
    for pinned, split in ((pair, first), (pair.second, second), (several.splits[1], second)):
        assert torch.equal(pinned.query_idx, split.query_idx + 1)
        assert torch.equal(pinned.support_idx, split.support_idx + 1)
    assert pair.nearby.shape == first.nearby.shape
