"""Preparation: raw files to arrays and a manifest, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metamae.data.formats.archives import intact
from metamae.data.preparing.prepared import FORMAT, MANIFEST, Prepared, folder_of, sha256
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Source, options_text
from metamae.data.preparing.whole import missing_files, missing_rows, refuse_partial
from metamae.data.preparing.writer import Writer
from metamae.errors import ConfigError
from metamae.files import write_json
from metamae.locks import locked_file
from metamae.progress import Reporter, Stage
from metamae.version import __version__

_UNPACKED = "unpacked"


def prepare(
    source: Source,
    data_dir: Path,
    *,
    options: Mapping[str, str] | None = None,
    on_error: str = "fail",
    again: bool = False,
    only: str | None = None,
    partial: bool = False,
    reporter: Reporter | None = None,
) -> Prepared:
    """Read the raw files of a set and leave its prepared form, unless it is there already.

    Args:
        source: Which set.
        data_dir: Folder with the raw files; the prepared form goes to ``prepared/`` in it.
        options: Options of the set; defaults for the others.
        on_error: ``fail`` stops at the first unreadable file; ``skip`` leaves such files out, and
            names them in the manifest.
        again: Prepare anew even if it is there.
        only: ``pretrain`` or ``probe``, where the files for one of them are enough.
        partial: Whether fewer examples than were published will do; the manifest keeps what is
            missing.
        reporter: Shows progress; silent by default.

    Raises:
        DataError: missing or damaged raw files, or fewer examples than published; the message
            says which.
        ConfigError: unknown options, or a set that was prepared with others.
        MissingLibraryError: an optional library is needed.
        LockedError: another process prepares the same set.
    """
    reporter = reporter or Reporter(None)
    resolved = source.resolve(options or {})
    folder = folder_of(source, data_dir)
    if folder.is_dir() and not again:
        return _keep(Prepared.open(source, data_dir), resolved, only)
    layout, paths = source.locate(data_dir, only)
    if not partial:
        refuse_partial(source, missing_files(source, paths))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(folder.parent / f".lock-{source.name}", folder):
        if folder.is_dir() and not again:  # by another process, just now
            return _keep(Prepared.open(source, data_dir), resolved, only)
        with _replacing(folder) as temporary:
            raw = Raw(
                layout=layout.name,
                paths=paths,
                options=resolved,
                reporter=reporter,
                only=None if len(paths) == len(layout.paths) else only,
                scratch=temporary / _UNPACKED,
            )
            with Writer(temporary, on_error=on_error, reporter=reporter) as writer:
                read(source, raw, writer)
                _finish(source, raw, writer, partial)
        return Prepared.open(source, data_dir)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder beside another that takes its place at the end, and is gone where that fails."""
    _clear_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(source: Source, raw: Raw, writer: Writer) -> None:
    """Run the reader of a source over its raw files, to their ends.

    Raises:
        DataError: what is damaged.
    """
    with intact(", ".join(str(path) for path in raw.paths.values())):
        opened = raw.unnested({role: source.names(role) for role in raw.paths})
        source.prepare(opened, writer)
        opened.finish()


def _finish(source: Source, raw: Raw, writer: Writer, partial: bool) -> None:
    """Close the arrays and write the manifest."""
    facts, reporter = writer.close(), writer.reporter
    missing = missing_rows(source, writer)
    if not partial:
        refuse_partial(source, missing)
    shutil.rmtree(raw.scratch, ignore_errors=True)
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "metamae": __version__,
        "layout": raw.layout,
        "options": dict(raw.options),
        "only": raw.only,
        "partial": {name: list(counts) for name, counts in missing.items()},
        "on_error": writer.on_error,
        "sources": _describe_sources(raw.paths, reporter),
        "skipped": writer.skipped,
        "partitions": writer.partitions,
        "arrays": _describe_arrays(writer, reporter),
        "facts": facts,
    }
    write_json(writer.folder / MANIFEST, manifest)


def _keep(prepared: Prepared, options: Mapping[str, str], only: str | None) -> Prepared:
    made_for = prepared.manifest.get("only")
    if made_for not in (None, only):
        raise ConfigError(
            f"expected {prepared.source.name!r} to be prepared for {only or 'all'}, it was made "
            f"with --only {made_for}; add --again to make it anew"
        )
    if prepared.options == options:
        return prepared
    raise ConfigError(
        f"expected {prepared.source.name!r} to be prepared with {options_text(options)}, it was "
        f"made with {options_text(prepared.options)}; add --again to make it anew"
    )


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed preparation of the same set left behind."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _describe_arrays(writer: Writer, reporter: Reporter) -> dict[str, dict[str, Any]]:
    entries = {}
    with reporter.stage("checksums", total=len(writer.arrays), unit="files") as stage:
        for name, array in writer.arrays.items():
            entries[name] = {
                "shape": [array.rows, *array.shape],
                "dtype": str(array.dtype),
                "bytes": array.path.stat().st_size,
                "sha256": sha256(array.path),
                "modified": array.path.stat().st_mtime_ns,
            }
            stage.advance()
    return entries


def _describe_sources(paths: Mapping[str, Path], reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each raw file; of a folder, over its files' names and contents."""
    files = {role: _files(path) for role, path in paths.items()}
    total = sum(map(len, files.values()))
    entries = {}
    with reporter.stage("checksums of raw files", total=total, unit="files") as stage:
        for role, path in paths.items():
            entries[role] = {
                "path": str(path),
                "files": len(files[role]),
                "bytes": sum(file.stat().st_size for file in files[role]),
                "sha256": _digest(path, files[role], stage),
            }
    return entries


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _digest(path: Path, files: Sequence[Path], stage: Stage) -> str:
    whole = hashlib.sha256()
    for file in files:
        digest = sha256(file)
        stage.advance()
        if file == path:
            return digest
        whole.update(f"{file.relative_to(path).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()
