"""Locks of output folders; two processes at once are in tests/attacks/test_two_at_once.py."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from metamae.errors import LockedError
from metamae.locks import HOLDER, LOCK, locked


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    """Made for the lock alone, it goes with it; what was written stays."""
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_it_is_released_after_an_error(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(tmp_path):
            raise error
    with locked(tmp_path):
        pass


def test_the_same_thread_may_ask_again_and_no_other(tmp_path: Path) -> None:
    faults: list[str] = []

    def ask() -> None:
        try:
            with locked(tmp_path):
                pass
        except LockedError as fault:
            faults.append(str(fault))

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        other = threading.Thread(target=ask)
        other.start()
        other.join()
    assert len(faults) == 1
    assert re.search(rf"got process {os.getpid()} on \S+ \(.+, since \d{{4}}-", faults[0])
    assert "choose another output folder" in faults[0]


def test_what_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / HOLDER).write_text(json.dumps({"pid": 2**22 - 1, "host": "x", "command": "y"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_holder_without_a_readable_note_is_another_process(note: str, tmp_path: Path) -> None:
    (tmp_path / HOLDER).write_text(note)
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(LockedError, match="got another process at work there"),
        locked(tmp_path),
    ):
        pass


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path) -> None:
    """The one who held it before removes the file: locking that file locks nothing."""
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).touch()
    with locked(tmp_path):
        pass
