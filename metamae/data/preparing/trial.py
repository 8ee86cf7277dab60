"""A trial: raw files are read as they would be for preparing, for some seconds, and left again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from metamae.data.preparing.prepare import read
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Layout, Source
from metamae.data.preparing.whole import Missing, missing_rows
from metamae.data.preparing.writer import Writer
from metamae.progress import Reporter

SECONDS = 5.0
"""How long a trial lasts at most, but for one picture, sound or list more."""


class _TimeIsUp(BaseException):
    """Ends a trial; no reader takes it for damage."""


class _Trial(Writer):
    """A writer that stops after a time."""

    def __init__(self, folder: Path, until: float) -> None:
        super().__init__(folder, on_error="fail", reporter=Reporter(None))
        self.until = until

    def __enter__(self) -> _Trial:
        return self

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """One file or record, while there is time."""
        self.watch()
        with super().reading(name):
            yield

    def watch(self, position: int = 0) -> None:
        """Stop when the time is up."""
        if time.monotonic() > self.until:
            raise _TimeIsUp


def try_out(
    source: Source,
    layout: Layout,
    paths: Mapping[str, Path],
    *,
    only: str | None = None,
    seconds: float = SECONDS,
) -> Missing | None:
    """Read raw files from their beginning.

    Args:
        source: Which set.
        layout: Its layout.
        paths: Its files.
        only: As :func:`~metamae.data.preparing.prepare.prepare` takes it.
        seconds: How long.

    Returns:
        What is missing of the published rows, where all was read; ``None`` where time was up.

    Raises:
        DataError: what cannot be read, as preparing would say it.
        MissingLibraryError: an optional library is needed.
    """
    with (
        TemporaryDirectory(prefix=f"metamae-{source.name}-") as folder,
        _Trial(Path(folder), time.monotonic() + seconds) as writer,
    ):
        raw = Raw(
            layout=layout.name,
            paths=paths,
            options=source.resolve({}),
            reporter=writer.reporter,
            only=None if len(paths) == len(layout.paths) else only,
            scratch=Path(folder) / "unpacked",
            watch=writer.watch,
        )
        try:
            read(source, raw, writer)
            writer.close()
        except _TimeIsUp:
            return None
        return missing_rows(source, writer)
