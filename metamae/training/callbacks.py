"""What a run tells others while it trains: a small interface, and what listens by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from metamae.config.schema import Config
from metamae.data.description import Description
from metamae.errors import ConfigError, TrainingError, reason_of
from metamae.files import write_text

if TYPE_CHECKING:
    from metamae.training.outcome import Pretrained

LOG = "log.jsonl"


class Callback:
    """Listens to a run; every method does nothing unless it is overridden.

    What a callback raises stops the run after what it reached is saved; the message names it.
    It has no say in the training: the numbers are those of a run without it.

    Example:
        >>> import metamae
        >>> from metamae.training import Callback, pretrain
        >>> class Printer(Callback):
        ...     def on_log(self, step, values):
        ...         print(step, sorted(values))
        >>> config = metamae.make_config(
        ...     "basic_motions", method="mae", overrides=["training.steps=1"]
        ... )
        >>> data = metamae.load_dataset("basic_motions")
        >>> _ = pretrain(config, data, "run", callbacks=[Printer()])
        1 ['loss', 'query']
    """

    def on_start(self, config: Config, description: Description, step: int) -> None:
        """Before the first step.

        Args:
            config: The resolved configuration.
            description: Inputs, scaling, task and recipe of the data.
            step: Steps taken before: 0, or more where a run goes on.
        """

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """After a step whose numbers are logged; ``training.log_every`` says which.

        A run that was killed takes the steps after its last checkpoint again, and logs them again.

        Args:
            step: Number of the step, from 1.
            values: ``loss`` and its terms, by name.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint was written.

        Args:
            step: Steps taken.
            path: The file.
        """

    def on_end(self, result: Pretrained) -> None:
        """After the last step, when all files are written; not after a run that was stopped."""

    def close(self) -> None:
        """Always called last, however the run ended: let go of files and connections."""


class Callbacks:
    """Several callbacks as one; after the first that raises, nobody is called any more.

    Raises:
        ConfigError: something that is no callback.
        CallbackError: naming the callback that raised, and what.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """See the class."""
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise ConfigError(
                    f"expected callbacks that derive from metamae.training.Callback, got "
                    f"{type(callback).__name__}"
                )
        self.callbacks, self.failed = tuple(callbacks), False

    def start(self, config: Config, description: Description, step: int) -> None:
        """Call ``on_start`` of all."""
        self._call("on_start", config, description, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Call ``on_log`` of all."""
        self._call("on_log", step, values)

    def checkpoint(self, step: int, path: Path) -> None:
        """Call ``on_checkpoint`` of all."""
        self._call("on_checkpoint", step, path)

    def end(self, result: Pretrained) -> None:
        """Call ``on_end`` of all."""
        self._call("on_end", result)

    def __enter__(self) -> Callbacks:
        """Itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close all; the first that raises is named, unless something else went wrong before."""
        faults = [fault for one in self.callbacks if (fault := _closing_fault(one)) is not None]
        if faults and kind is None:
            raise faults[0]

    def _call(self, hook: str, *arguments: Any) -> None:
        if self.failed:
            return
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(*arguments)
            except Exception as fault:  # of other people's code
                self.failed = True
                raise _blame(callback, hook, fault) from fault


class CallbackError(TrainingError):
    """A callback raised; what the run had reached is saved."""


def _closing_fault(callback: Callback) -> CallbackError | None:
    try:
        callback.close()
    except Exception as fault:
        return _blame(callback, "close", fault)
    return None


def _blame(callback: Callback, hook: str, fault: Exception) -> CallbackError:
    return CallbackError(
        f"expected the callback {type(callback).__name__} to take {hook}, got "
        f"{type(fault).__name__}: {reason_of(fault)}"
    )


class JsonLines(Callback):
    r"""A line of JSON for every logged step: ``{"step": 1, "loss": 0.5}``.

    The file always holds what the run's history holds: a run that goes on from a checkpoint
    rewrites it, so that no step is there twice and none is missing.

    Args:
        path: The file.
        history: Series that were logged before, see
            :class:`metamae.training.run_folder.History`.

    Example:
        >>> from pathlib import Path
        >>> from metamae.training.callbacks import JsonLines
        >>> log = JsonLines(Path("log.jsonl"), {"loss": [[1, 0.5], [2, 0.25]]})
        >>> log.open()
        >>> log.on_log(3, {"loss": 0.125})
        >>> log.close()
        >>> Path("log.jsonl").read_text().splitlines()[-1]
        '{"step": 3, "loss": 0.125}'
    """

    def __init__(self, path: Path, history: Mapping[str, list[list[float]]]) -> None:
        """See the class."""
        self.path, self.history = path, history
        self.file: IO[str] | None = None

    def on_start(self, config: Config, description: Description, step: int) -> None:
        """Write the lines of the steps before."""
        self.open()

    def open(self) -> None:
        """Write the lines of the steps before, and keep the file open for more."""
        write_text(self.path, "".join(_line(*row) for row in rows_of(self.history)))
        self.file = self.path.open("a", encoding="utf-8")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        if self.file is not None:
            self.file.write(_line(step, values))
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def rows_of(history: Mapping[str, list[list[float]]]) -> list[tuple[int, dict[str, float]]]:
    """Series turned round: every logged step and its numbers, in order.

    Example:
        >>> from metamae.training.callbacks import rows_of
        >>> rows_of({"loss": [[1, 0.5], [3, 0.25]], "query": [[3, 0.2]]})
        [(1, {'loss': 0.5}), (3, {'loss': 0.25, 'query': 0.2})]
    """
    rows: dict[int, dict[str, float]] = {}
    for name, points in history.items():
        for step, value in points:
            rows.setdefault(int(step), {})[name] = value
    return sorted(rows.items())


def values_at(history: Mapping[str, list[list[float]]], step: int) -> dict[str, float]:
    """The numbers that were logged last, where they are of this step."""
    return {name: points[-1][1] for name, points in history.items() if points[-1][0] == step}


def _line(step: int, values: Mapping[str, float]) -> str:
    return json.dumps({"step": step} | dict(values), allow_nan=False) + "\n"
