"""Experiments as data: a YAML file lists cells, one per (data set, variant, method, seed)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from metamae.arguments import check_folder_name, check_text
from metamae.config.names import METHODS, check_method
from metamae.config.presets import make_config
from metamae.config.schema import Config
from metamae.data.dataset import Dataset
from metamae.data.pocket import POCKET, load_pocket, stands_for
from metamae.errors import ConfigError, shown, suggest
from metamae.evaluation.protocols import PROTOCOLS, labels_of
from metamae.experiments.ablation import TABLE_4, ablate
from metamae.experiments.own_data import OwnData, untimed_auto
from metamae.report.rows import DEFAULT, Key

AUTO = "auto"
"""The preset that looks at the data."""

MOST_CELLS = 100_000
"""More cells than anybody waits for: a number in a sweep file is then a slip."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named set of overrides.

    Attributes:
        overrides: Strings such as ``"decoder.depth=0"``.
        methods: Methods it applies to; all of the sweep's when empty.
        datasets: Data sets it applies to; all of the sweep's when empty.
        ablation: A row of :data:`~metamae.experiments.ablation.TABLE_4`, with a method of its own.
    """

    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    ablation: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set to pretrain on.

    Attributes:
        probe: Data sets to probe on; itself when empty.
        overrides: Overrides for this data set.
        own: Where own data are; ``None`` for a data set by name.
    """

    probe: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    own: OwnData | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pretraining run and its evaluations.

    Attributes:
        config: The resolved configuration.
        variant: Name of the variant.
        targets: Data sets to probe on.
        protocols: Protocols to evaluate.
        own: Own data that it pretrains on; ``None`` for a data set by name.
    """

    config: Config
    variant: str
    targets: tuple[str, ...]
    protocols: tuple[str, ...]
    own: OwnData | None = None

    @property
    def name(self) -> str:
        """Its folder below the output folder."""
        config = self.config
        return f"{config.dataset}/{self.variant}/{config.method}/seed-{config.seed}"

    def key(self, target: str, protocol: str) -> Key:
        """Key of one of its rows."""
        config = self.config
        seed = config.seed
        return Key(config.dataset, target, config.method, self.variant, seed, protocol, seed)

    @property
    def keys(self) -> list[Key]:
        """Keys of all its rows."""
        return [self.key(t, p) for t in self.targets for p in self.protocols]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        datasets: Data sets to pretrain on.
        methods: Methods.
        seeds: Seeds.
        protocols: Evaluation protocols.
        variants: Named sets of overrides; by default only one, without any.
        overrides: Overrides of all cells.
        preset: ``pocket``, ``paper``, ``shared`` or ``auto``; own data take ``auto``.
    """

    datasets: dict[str, Source]
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    protocols: tuple[str, ...] = PROTOCOLS
    variants: dict[str, Variant] = field(default_factory=lambda: {DEFAULT: Variant()})
    overrides: tuple[str, ...] = ()
    preset: str = "pocket"

    def __post_init__(self) -> None:
        """Check all names."""
        for what in ("datasets", "methods", "seeds", "protocols", "variants"):
            kind = dict if what in ("datasets", "variants") else tuple
            if not isinstance(getattr(self, what), kind):
                raise ConfigError(
                    f"expected {what} of a sweep as a {kind.__name__}, got "
                    f"{shown(getattr(self, what))}"
                )
            if not getattr(self, what):
                raise ConfigError(f"expected one or more {what} in a sweep, got none")
        for protocol in self.protocols:
            labels_of(protocol)
        for method in self.methods:
            check_method(method)
        for name, variant in self.variants.items():
            for method in variant.methods:
                check_method(method, f"the methods of variant {name!r}")
            if variant.ablation:
                check_names(f"the ablation of variant {name!r}", [variant.ablation], TABLE_4)
            if variant.ablation and variant.methods:
                raise ConfigError(
                    f"expected no methods in variant {name!r}, whose ablation has its own, got "
                    f"{', '.join(variant.methods)}"
                )
            check_names(f"the data sets of variant {name!r}", variant.datasets, self.datasets)
            check_folder_name(name, "a variant's name")

    def cells(self) -> list[Cell]:
        """All cells: seeds outermost, so that a sweep that is stopped has whole comparisons.

        Raises:
            ConfigError: overrides that are impossible for a data set, or too many cells.
            DataError: own data that cannot be read.
        """
        most = len(self.seeds) * len(self.datasets) * len(self.variants) * len(self.methods)
        if most > MOST_CELLS:
            raise ConfigError(f"expected up to {MOST_CELLS} cells in a sweep, got {most}")
        return [cell for seed in self.seeds for cell in self._cells(seed)]

    def _cells(self, seed: int) -> Iterator[Cell]:
        for dataset, source in self.datasets.items():
            for name, variant in self.variants.items():
                if variant.datasets and dataset not in variant.datasets:
                    continue
                overrides = (*self.overrides, *source.overrides, *variant.overrides)
                methods = variant.methods or self.methods
                if variant.ablation:
                    full = self._resolve(dataset, "metamae", seed, overrides)
                    method, changes = ablate(variant.ablation, full)
                    methods, overrides = (method,), (*overrides, *changes)
                for method in methods:
                    yield Cell(
                        config=self._resolve(dataset, method, seed, overrides),
                        variant=name,
                        targets=source.probe or (dataset,),
                        protocols=self.protocols,
                        own=source.own,
                    )

    def _resolve(self, dataset: str, method: str, seed: int, overrides: tuple[str, ...]) -> Config:
        own = self.datasets[dataset].own
        if own is None and self.preset != AUTO:
            return resolve(dataset, self.preset, method, seed, overrides)
        _check_overrides(overrides)
        if own is not None:
            return own.config(method, seed, overrides)
        if dataset not in POCKET:
            raise ConfigError(
                f"expected embedded data sets under the preset auto in a sweep, got {dataset!r}; "
                f"use preset: paper for it, or one of {', '.join(POCKET)}"
            )
        return untimed_auto(_embedded(dataset), dataset, method, seed, overrides)


@lru_cache(maxsize=len(POCKET))  # the configuration of every cell looks at its data
def _embedded(name: str) -> Dataset:
    return load_pocket(name)


def resolve(
    dataset: str, preset: str, method: str, seed: int, overrides: tuple[str, ...] | list[str] = ()
) -> Config:
    """Configuration of one run; an untrained encoder takes no steps.

    Raises:
        ConfigError: unknown names, or impossible values.

    Example:
        >>> from metamae.experiments.plan import resolve
        >>> resolve("sensors", "pocket", "random", 3).training.steps
        0
    """
    for name, what in ((dataset, "a data set"), (preset, "a preset"), (method, "a method")):
        check_text(name, what)
    _check_overrides(overrides)
    preset_name = stands_for(dataset) if preset != "pocket" and dataset in POCKET else dataset
    config = make_config(
        dataset,
        preset=preset,
        preset_name=preset_name,
        overrides=overrides,
        method=method,
        seed=seed,
    )
    if method == "random":
        config = replace(config, training=replace(config.training, steps=0))
    return config


def _check_overrides(overrides: tuple[str, ...] | list[str]) -> None:
    for override in overrides:
        check_text(override, "an override")
        if override.partition("=")[0] in ("dataset", "method", "preset", "seed"):
            raise ConfigError(f"expected a setting of its own instead of the override {override}")


def check_names(what: str, names: Any, known: Any) -> None:
    """Raise ``ConfigError`` for a name that is not known, naming the nearest."""
    for name in names:
        if name not in known:
            raise ConfigError(
                f"expected names among {', '.join(known)} in {what}, {suggest(str(name), known)}"
            )
