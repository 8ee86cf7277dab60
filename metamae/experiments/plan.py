"""Experiments as data: a YAML file lists cells, one per (data set, variant, method, seed)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metamae.arguments import as_path, check_folder_name, check_text
from metamae.config.presets import list_presets, make_config
from metamae.config.schema import LARGEST_SEED, METHODS, PRESETS, Config, check_method
from metamae.data.own import is_path
from metamae.data.pocket import POCKET, stands_for
from metamae.data.sources import SOURCES
from metamae.errors import ConfigError, reason_of, shown, suggest
from metamae.evaluation.protocols import PROTOCOLS, labels_of
from metamae.experiments.ablation import TABLE_4, ablate
from metamae.experiments.own_data import OWN_KEYS, OwnData
from metamae.files import parse_yaml, read_text
from metamae.report.rows import DEFAULT, Key


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
        preset: ``pocket`` or ``paper``; own data take ``auto``.
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
                _check_names(f"the ablation of variant {name!r}", [variant.ablation], TABLE_4)
            if variant.ablation and variant.methods:
                raise ConfigError(
                    f"expected no methods in variant {name!r}, whose ablation has its own, got "
                    f"{', '.join(variant.methods)}"
                )
            _check_names(f"the data sets of variant {name!r}", variant.datasets, self.datasets)
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
        if own is None:
            return resolve(dataset, self.preset, method, seed, overrides)
        _check_overrides(overrides)
        return own.config(method, seed, overrides)


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


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Data sets, methods, seeds, protocols, variants and overrides are those of :class:`Sweep`;
    ``seeds`` may be a number, ``datasets`` a list of names. Own data have a name of their own, and
    a ``path`` that starts from the folder of the file.

    Raises:
        ConfigError: a missing file, no YAML, unknown keys or names, wrong types.
    """
    path = as_path(path, "a sweep file")
    try:
        values = parse_yaml(read_text(path))
    except OSError as fault:
        raise ConfigError(f"expected a sweep file at {path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise ConfigError(f"expected YAML in {path}: {reason_of(fault)}") from fault
    known = ("datasets", "methods", "seeds", "protocols", "variants", "overrides", "preset")
    values = _section(values, known, str(path))
    if "datasets" not in values:
        raise ConfigError(f"expected a key 'datasets' in {path}, got {', '.join(values) or 'none'}")
    settings: dict[str, Any] = {"datasets": _datasets(values["datasets"], path.parent)}
    for key in ("methods", "protocols", "overrides"):
        if key in values:
            settings[key] = _texts(values[key], key)
    if "variants" in values:
        settings["variants"] = _variants(values["variants"])
    if "seeds" in values:
        settings["seeds"] = _seeds(values["seeds"])
    if "preset" in values:
        _check_names("preset", [values["preset"]], PRESETS)
        settings["preset"] = values["preset"]
    return Sweep(**settings)


def _datasets(values: Any, folder: Path) -> dict[str, Source]:
    if isinstance(values, list):
        values = {str(name): None for name in values}
    names = [*POCKET, *list_presets("paper")]
    sources = {}
    for name, value in _section(values, None, "datasets").items():
        if isinstance(value, dict) and "path" in value:
            sources[str(name)] = _own(str(name), value, folder)
            continue
        if is_path(str(name)):
            raise ConfigError(
                f"expected own data in datasets under a name, as NAME: {{path: {name}, label: "
                f"COLUMN}}, got the path {str(name)!r}"
            )
        _check_names("datasets", [name], names)
        inner = _section(value or {}, ("probe", "overrides"), f"datasets.{name}")
        settings = {key: _texts(inner[key], f"datasets.{name}.{key}") for key in inner}
        _check_names(f"datasets.{name}.probe", settings.get("probe", ()), (*POCKET, *SOURCES))
        sources[name] = Source(
            probe=settings.get("probe", ()), overrides=settings.get("overrides", ())
        )
    return sources


def _own(name: str, values: Any, folder: Path) -> Source:
    inner = dict(_section(values, (*OWN_KEYS, "overrides"), f"datasets.{name}"))
    overrides = _texts(inner.pop("overrides", []), f"datasets.{name}.overrides")
    return Source(overrides=overrides, own=OwnData.read(name, inner, folder))


def _variants(values: Any) -> dict[str, Variant]:
    variants = {}
    for name, value in _section(values, None, "variants").items():
        known = ("overrides", "methods", "datasets", "ablation")
        inner = dict(_section(value or {}, known, f"variants.{name}"))
        ablation = str(inner.pop("ablation", ""))
        settings = {key: _texts(inner[key], f"variants.{name}.{key}") for key in inner}
        variants[str(name)] = Variant(ablation=ablation, **settings)
    return variants


def _seeds(value: Any) -> tuple[int, ...]:
    if type(value) is int and value > MOST_CELLS:
        raise ConfigError(f"expected up to {MOST_CELLS} seeds, got {shown(value)}")
    seeds = list(range(value)) if type(value) is int else value
    whole = isinstance(seeds, list) and all(
        type(s) is int and 0 <= s <= LARGEST_SEED for s in seeds
    )
    if not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"expected seeds as a number or a list of numbers >= 0, got {shown(value)}; "
            "each once, and below 2**64"
        )
    return tuple(seeds)


MOST_CELLS = 100_000
"""More cells than anybody waits for: a number in a sweep file is then a slip."""


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"expected a list of texts for {where}, got {shown(value)}")
    return tuple(items)


def _section(value: Any, known: tuple[str, ...] | None, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"expected keys and values in {where}, got {shown(value)}")
    _check_names(where, value, known or value)
    return value


def _check_names(what: str, names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"expected names among {', '.join(known)} in {what}, {suggest(str(name), known)}"
            )
