"""Callbacks by name: TensorBoard, Weights & Biases, MLflow, each where it is installed.

They get the logged numbers at their steps and the configuration, nothing of the data but its name.
A run that goes on adds to what it logged before: the names that the services gave it lie in its
folder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metamae.config.schema import Config
from metamae.data.description import Description
from metamae.errors import ConfigError, MissingLibraryError, reason_of, suggest
from metamae.files import write_text
from metamae.training.callbacks import Callback
from metamae.training.outcome import Pretrained


class TensorBoard(Callback):
    """Curves for TensorBoard: ``tensorboard --logdir RUNS``.

    Args:
        run_dir: Run folder; the files are in its folder ``tensorboard``.

    Raises:
        MissingLibraryError: without the extra ``tensorboard``.
    """

    def __init__(self, run_dir: Path) -> None:
        """See the class."""
        _need("tensorboard", "pip install 'metamae[tensorboard]'")
        self.folder = run_dir / "tensorboard"
        self.writer: Any = None

    def on_start(self, config: Config, description: Description, step: int) -> None:
        """Open the files; steps after the one that a run goes on from are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        if step == 0:
            self.writer.add_text("config", f"```yaml\n{config.to_yaml()}```", 0)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Write what is held back."""
        self.writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self.writer is not None:
            self.writer.close()


class WandB(Callback):
    """A run of Weights & Biases, in the project ``metamae`` or that of ``WANDB_PROJECT``.

    Args:
        run_dir: Run folder; the identifier of the run is kept in it, so that a resumed run goes on
            in the same curves.

    Raises:
        MissingLibraryError: the package is not installed.
    """

    def __init__(self, run_dir: Path) -> None:
        """See the class."""
        self.wandb = _need("wandb", "pip install wandb")
        self.run_dir = run_dir
        self.run: Any = None

    def on_start(self, config: Config, description: Description, step: int) -> None:
        """Begin a run, or go on with the one that this folder names."""
        name = self.run_dir / "wandb-run.txt"
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "metamae"),
            name=f"{description.name} {config.method} #{config.seed}",
            config=config.to_dict(),
            dir=str(self.run_dir),
            id=_kept(name) if step else None,
            resume="allow",
        )
        write_text(name, self.run.id + "\n")

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        if self.run is not None:
            self.run.log(dict(values), step=step)

    def on_end(self, result: Pretrained) -> None:
        """Say how long it took."""
        if self.run is not None:
            self.run.summary.update({"steps": result.steps, "seconds": result.seconds})

    def close(self) -> None:
        """End the run."""
        if self.run is not None:
            self.run.finish()


class MLflow(Callback):
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say.

    Args:
        run_dir: Run folder; the identifier of the run is kept in it.

    Raises:
        MissingLibraryError: the package is not installed.
    """

    def __init__(self, run_dir: Path) -> None:
        """See the class."""
        self.mlflow = _need("mlflow", "pip install mlflow")
        self.run_dir, self.started = run_dir, False

    def on_start(self, config: Config, description: Description, step: int) -> None:
        """Begin a run, or go on with the one that this folder names."""
        name = self.run_dir / "mlflow-run.txt"
        earlier = _kept(name) if step else None
        run = self.mlflow.start_run(
            run_id=earlier,
            run_name=None if earlier else f"{description.name} {config.method} #{config.seed}",
        )
        self.started = True
        write_text(name, run.info.run_id + "\n")
        if earlier is None:
            self.mlflow.log_params(_flat(config.to_dict()))

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        if self.started:
            self.mlflow.end_run()


LOGGERS: dict[str, Callable[[Path], Callback]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""Callbacks that are known by name."""


def make_loggers(names: Sequence[str], run_dir: Path) -> list[Callback]:
    """Callbacks by name, for one run folder.

    Raises:
        ConfigError: an unknown name, or one twice.
        MissingLibraryError: its package is not installed.

    Example:
        >>> from pathlib import Path
        >>> from metamae.training.loggers import make_loggers
        >>> make_loggers(["paper"], Path("run"))
        Traceback (most recent call last):
        ...
        metamae.errors.ConfigError: expected loggers among tensorboard, wandb, mlflow, got 'paper'
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(
                f"expected loggers among {', '.join(LOGGERS)}, {suggest(name, LOGGERS)}"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"expected every logger once, got {', '.join(names)}")
    return [LOGGERS[name](run_dir) for name in names]


def _need(name: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise MissingLibraryError(
            f"expected the package {name} to log to ({reason_of(fault)}); run: {command}"
        ) from fault


def _kept(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
