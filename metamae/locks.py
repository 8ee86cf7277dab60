"""One at a time: whoever writes to an output folder holds its lock.

The lock is the operating system's (``flock``, on Windows ``msvcrt``), by the package ``filelock``:
it ends with the process that holds it, however that ends, so a stale one is none. Beside the lock
file lies a note that says who holds it; both are removed on release.

On NFS the lock holds between machines only where the server's lock service runs; on file systems
without locks at all ``filelock`` warns and falls back to a file that a killed process may leave
behind; and on Windows a lock file that is still open elsewhere cannot be removed, and stays.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from metamae.errors import LockedError

LOCK, HOLDER = ".lock", ".lock.json"
_mine: dict[Path, tuple[int, int]] = {}
"""Lock files held by this process, which a forked one is not, and by which of its threads."""


@contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of an output folder; made if missing, removed again if it stays empty.

    The thread that holds it may ask again: commands lock what the functions they call lock too.

    Args:
        folder: The folder.
        wait: Seconds to wait for another holder.

    Raises:
        LockedError: another process or thread holds it; the message names it.

    Example:
        >>> import tempfile, pathlib
        >>> from metamae.locks import locked
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with locked(pathlib.Path(folder) / "run"):
        ...         sorted(path.name for path in pathlib.Path(folder, "run").iterdir())
        ['.lock', '.lock.json']
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_file(folder / LOCK, folder, wait=wait):
            yield
    finally:
        with suppress(OSError):  # not empty: something was written
            for path in made:
                path.rmdir()


@contextmanager
def locked_file(path: Path, subject: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file on behalf of ``subject``, which errors name; its folder must be there."""
    path, myself = path.resolve(), (os.getpid(), threading.get_ident())
    if _mine.get(path) == myself:
        yield
        return
    note, lock = path.with_name(path.name + ".json"), _acquire(path, subject, wait)
    _mine[path] = myself
    try:
        with suppress(OSError):  # the note is for others' errors; the lock holds without it
            note.write_text(json.dumps(_describe_self()))
        yield
    finally:
        del _mine[path]
        # Removed while it is held: a waiting process sees that its file is gone, and starts over.
        for file in (note, path):
            with suppress(OSError):
                file.unlink(missing_ok=True)
        lock.release()


def _acquire(path: Path, subject: Path, wait: float) -> FileLock:
    deadline = time.monotonic() + wait
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except Timeout:
            raise LockedError(
                f"expected to be alone at work on {subject}, got {_holder(path)} at work there; "
                "wait for it, stop it, or choose another output folder"
            ) from None
        if _is_current(lock, path):
            return lock
        lock.release()


def _is_current(lock: FileLock, path: Path) -> bool:
    """Whether the file that was locked is still the one of that name.

    Releases of filelock before 3.21 do not look: the one who held it before may have removed it.
    """
    descriptor = lock._context.lock_file_fd
    if descriptor is None:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _describe_self() -> dict[str, str | int]:
    program = Path(sys.argv[0] or "python")
    name = program.parent.name if program.name == "__main__.py" else program.name
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([name, *sys.argv[1:]])[:200],
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }


def _holder(path: Path) -> str:
    """Who holds a lock, in words; a note is written just after a lock is taken."""
    note = path.with_name(path.name + ".json")
    for _ in range(10):
        try:
            said = json.loads(note.read_text())
            text = (
                f"process {int(said['pid'])} on {said['host']} ({said['command']}, since "
                f"{said['since']})"
            )
            if said["host"] != socket.gethostname() or _is_alive(int(said["pid"])):
                return " ".join(text.split())
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.03)
    return "another process"


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # there a signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
