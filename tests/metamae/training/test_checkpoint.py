"""Checkpoints: atomic, safe to load, and any damage is found and explained."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from metamae import CheckpointError, make_config
from metamae.files import write_json, write_text
from metamae.training.checkpoint import FORMAT, Checkpoint

CONFIG = make_config("basic_motions", seed=5, overrides=["token_size=[4]"])


def checkpoint(step: int = 3, fill: float = 1.0) -> Checkpoint:
    weight = torch.nn.Parameter(torch.full((4, 3), fill))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.square().sum().backward()
    optimiser.step()
    return Checkpoint(
        config=CONFIG,
        step=step,
        model={"weight": weight.detach(), "half": torch.arange(5.0).half()},
        optimiser=optimiser.state_dict(),
        history={"loss": [[1, 0.1], [3, 0.07]]},
        seconds=1.25,
        provenance={"torch": "2", "revision": "abc"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint().save(tmp_path / "deep" / "run" / "checkpoint.pt")
    return tmp_path / "deep" / "run" / "checkpoint.pt"


def test_a_checkpoint_reads_back_whole(path: Path) -> None:
    found, expected = Checkpoint.load(path), checkpoint()
    for name in ("config", "step", "history", "seconds", "provenance"):
        assert getattr(found, name) == getattr(expected, name)
    assert set(found.model) == set(expected.model)
    for name, tensor in expected.model.items():
        assert found.model[name].dtype == tensor.dtype
        assert torch.equal(found.model[name], tensor)
    state, wanted = found.optimiser["state"][0], expected.optimiser["state"][0]
    assert torch.equal(state["exp_avg"], wanted["exp_avg"])
    assert found.optimiser["param_groups"] == expected.optimiser["param_groups"]


def test_a_newer_checkpoint_replaces_the_older(path: Path) -> None:
    checkpoint(step=9, fill=2.0).save(path)
    assert Checkpoint.load(path).step == 9
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Half a file was written by then; no trace of it stays."""
    before = path.read_bytes()

    def failing(payload: object, file: Path) -> NoReturn:
        Path(file).write_bytes(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(type(error)):
        checkpoint(step=9).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_failure_before_the_renaming_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a disk that is full only when the file is flushed to it."""
    before = path.read_bytes()

    def failing(descriptor: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        checkpoint(step=9).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_text_and_json_are_written_atomically_too(tmp_path: Path) -> None:
    """And JSON refuses what JSON does not know."""
    file = tmp_path / "new" / "rows.json"
    write_json(file, {"a": [1, 2.5]})
    assert json.loads(file.read_text()) == {"a": [1, 2.5]}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(file, {"a": bad})
    with pytest.raises(TypeError):
        write_text(file, 3)  # type: ignore[arg-type]
    assert json.loads(file.read_text()) == {"a": [1, 2.5]}
    assert [entry.name for entry in file.parent.iterdir()] == ["rows.json"]


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt"
    payload = {"format": FORMAT, "config": CONFIG.to_dict(), "model": Evil(marker)}
    if zipped:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(CheckpointError, match="expected a readable checkpoint") as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # it was armed


def damaged(path: Path) -> str:
    """The message of the CheckpointError that loading raises: one line naming file and remedy."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "delete its folder and run again" in damaged(path)


@pytest.mark.parametrize(
    "content",
    [b"x", b"\x00" * 300, b"PK\x03\x04", b"}q\x00", bytes(range(256)), b"\x80\x02}\x85R."],
)
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    """And the message gives no advice to load it with `weights_only=False`."""
    path.write_bytes(content)
    assert "weights_only" not in damaged(path)


@pytest.mark.parametrize("part", ["weights", "pickle"])
@pytest.mark.parametrize("bit", [0, 4, 7])
def test_a_flipped_bit_is_found(path: Path, part: str, bit: int) -> None:
    """In the weights, where torch itself does not look at the checksums of the archive."""
    content = bytearray(path.read_bytes())
    weights = checkpoint().model["weight"].numpy().tobytes()
    marks = {"weights": weights, "pickle": b"provenance"}
    place = bytes(content).index(marks[part]) + 3
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))
    assert "damaged" in damaged(path)


@pytest.mark.parametrize(
    "payload", [[1], {}, {"format": FORMAT + 1, "config": CONFIG.to_dict()}, torch.zeros(2), None]
)
def test_another_format_is_refused(path: Path, payload: object) -> None:
    torch.save(payload, path)
    assert f"expected a metamae checkpoint of format {FORMAT}" in damaged(path)


@pytest.mark.parametrize(
    "payload",
    [
        {"format": FORMAT},
        {"format": FORMAT, "config": CONFIG.to_dict()},
        {"format": FORMAT, **vars(checkpoint()), "config": CONFIG.to_dict(), "surplus": 1},
        {"format": FORMAT, **vars(checkpoint()), "config": {"dataset": "digits", "nope": 1}},
        {"format": FORMAT, **vars(checkpoint()), "config": 5},
    ],
    ids=["no configuration", "missing keys", "surplus key", "unknown setting", "no section"],
)
def test_a_checkpoint_with_other_contents_is_refused(path: Path, payload: object) -> None:
    torch.save(payload, path)
    damaged(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(CheckpointError, match="found none; check the path, or pretrain first"):
            Checkpoint.load(path)
