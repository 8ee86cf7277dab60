"""Presets by name, and the configuration that a preset and overrides make."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml

from metamae.arguments import check_text
from metamae.config.reading import apply_override
from metamae.config.schema import PRESETS, Config
from metamae.errors import ConfigError, suggest


def load_preset(preset: str, name: str) -> dict[str, Any]:
    """Raw values of one preset file, e.g. ``load_preset("pocket", "sensors")``.

    Raises:
        ConfigError: if there is no such preset, or no such kind of them.

    Example:
        >>> from metamae.config.presets import load_preset
        >>> load_preset("paper", "pamap2")["adaptation"]
        {'step_size': 0.5}
    """
    known = list_presets(preset)
    check_text(name, "a data set")
    if name not in known:
        raise ConfigError(
            f"expected a data set with a {preset} preset ({', '.join(known)}), "
            f"{suggest(str(name), known)}"
        )
    path = resources.files("metamae") / "presets" / preset / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def list_presets(preset: str) -> list[str]:
    """Names of the presets of one kind.

    Raises:
        ConfigError: an unknown kind.
    """
    check_text(preset, "a preset")
    if preset not in PRESETS:
        raise ConfigError(
            f"expected a preset among {', '.join(PRESETS)}, {suggest(str(preset), PRESETS)}"
        )
    folder = resources.files("metamae") / "presets" / preset
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def make_config(
    dataset: str,
    *,
    preset: str = "pocket",
    preset_name: str | None = None,
    overrides: Iterable[str] = (),
    **values: Any,
) -> Config:
    """Resolve a configuration: defaults, then the preset, then ``values``, then overrides.

    Args:
        dataset: Name of the data set.
        preset: One of :data:`PRESETS`.
        preset_name: Preset file, when it is not called like the data set.
        overrides: Strings such as ``"training.steps=100"``; the value is read as YAML.
        values: Top-level fields such as ``method`` and ``seed``.

    Raises:
        ConfigError: on unknown names, keys, types or values.

    Example:
        >>> from metamae.config.presets import make_config
        >>> config = make_config("sensors", overrides=["training.steps=7"], seed=3)
        >>> config.training.steps, config.seed
        (7, 3)
    """
    merged = load_preset(preset, preset_name or dataset)
    merged |= {"dataset": dataset, "preset": preset} | values
    for override in overrides:
        apply_override(merged, override)
    return Config.from_dict(merged)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """The configuration with some settings changed.

    Raises:
        ConfigError: on unknown keys, types or values.

    Example:
        >>> from metamae.config.presets import make_config, override
        >>> override(make_config("sensors"), ["probe.epochs=7"]).probe.epochs
        7
    """
    values = config.to_dict()
    for assignment in overrides:
        apply_override(values, assignment)
    return Config.from_dict(values)
