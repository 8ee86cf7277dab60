"""Own data in a sweep file: a name, a path, and what ``metamae pretrain`` takes as options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from metamae.arguments import check_folder_name
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.own import Opened, open_data
from metamae.data.pocket import POCKET
from metamae.data.sources import SOURCES
from metamae.errors import ConfigError, shown
from metamae.training.auto import auto_config, named_steps

_ARGUMENTS = {
    "label": ("label", str),
    "id": ("ids", str),
    "group": ("group", str),
    "drop": ("drop", list),
    "split": ("split", str),
    "as": ("kind", str),
    "token_size": ("token_size", list),
    "test_share": ("test_share", float),
    "skip_bad": ("skip_bad", bool),
    "pretrain_on_test": ("pretrain_on_test", bool),
}
"""Keys, named as the options of the command; the arguments of ``open_data``, and their types."""

OWN_KEYS = ("path", *_ARGUMENTS)
"""Keys of a data set in a sweep file that say where it is and how it is read."""


@dataclass(frozen=True)
class OwnData:
    """Own data under a name.

    Attributes:
        name: In folders and rows of results.
        path: A file or a folder, absolute.
        options: Arguments of :func:`~metamae.data.own.open_data`, in pairs.
    """

    name: str
    path: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any], folder: Path) -> OwnData:
        """What a sweep file says.

        Args:
            name: The key of the data set.
            values: Its values of :data:`OWN_KEYS`.
            folder: The file's own, from which a relative path starts.

        Raises:
            ConfigError: a name that data sets here have, or that is unfit for a folder; a value of
                another type.
        """
        where = f"datasets.{name}"
        if name in POCKET or name in SOURCES:
            raise ConfigError(
                f"expected another name than {name!r} for own data in a sweep, it is a data set of "
                "this package"
            )
        check_folder_name(name, "a name of own data")
        path = values.get("path")
        if not isinstance(path, str) or not path:
            raise ConfigError(f"expected {where}.path, a file or a folder, got {shown(path)}")
        options = []
        for key, value in values.items():
            if key == "path":
                continue
            argument, kind = _ARGUMENTS[key]
            if kind is list:
                value = (value,) if isinstance(value, str | int) else value
                value = tuple(value) if isinstance(value, list) else value
            fits = tuple if kind is list else (int, float) if kind is float else kind
            if not isinstance(value, fits) or (kind is float and isinstance(value, bool)):
                raise ConfigError(
                    f"expected {where}.{key} as {_WORDS[kind]}, got {shown(values[key])}"
                )
            options.append((argument, value))
        return cls(name, str((folder / path).expanduser().absolute()), tuple(sorted(options)))

    def opened(self) -> Opened:
        """The data, read once, under this name.

        Raises:
            ConfigError: no labels.
            DataError: what cannot be read or learned from.
        """
        return _open(self)

    def dataset(self) -> Dataset:
        """The data set."""
        return self.opened().dataset

    def config(self, method: str, seed: int, overrides: Iterable[str]) -> Config:
        """The configuration of a run: the preset ``auto``, for as many steps as is said.

        Raises:
            ConfigError: no number of steps, a token size, or overrides that do not fit.
        """
        config = untimed_auto(self.dataset(), self.name, method, seed, overrides)
        if config.token_size:
            raise ConfigError(
                f"expected datasets.{self.name}.token_size instead of an override of token_size"
            )
        return config


def untimed_auto(
    dataset: Dataset, name: str, method: str, seed: int, overrides: Iterable[str]
) -> Config:
    """The preset ``auto`` of a cell of a sweep, for as many steps as is said.

    Args:
        dataset: What is pretrained on.
        name: Its name in the sweep.
        method: A method.
        seed: Seed of the run.
        overrides: ``training.steps=N`` among them.

    Raises:
        ConfigError: no number of steps, or overrides that do not fit.
    """
    overrides = list(overrides)
    if not named_steps(overrides):
        raise ConfigError(
            f"expected training.steps=N among the overrides of {name!r} under the preset auto: in "
            "a sweep, which can be stopped and continued, no time is measured to choose it"
        )
    if method == "random":  # which takes none
        overrides = [text for text in overrides if not named_steps([text])]
    return auto_config(dataset, method=method, seed=seed, overrides=overrides)


_WORDS = {str: "a text", list: "a list", float: "a number", bool: "true or false"}


@lru_cache(maxsize=32)  # the configuration of every cell looks at its data
def _open(own: OwnData) -> Opened:
    opened = open_data(own.path, **dict(own.options))
    named = replace(opened.dataset, name=own.name)
    if named.task is None:
        raise ConfigError(
            f"expected datasets.{own.name}.label, what the probes of a sweep predict, got none"
        )
    return replace(opened, dataset=named)


def forget() -> None:
    """Read files anew: they may have changed since an earlier sweep of this process."""
    _open.cache_clear()
