"""Prefetched input: the same items in the same order, errors at their own step."""

from __future__ import annotations

import threading

import pytest

from metamae.training.batches import Prefetcher


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
