"""Sizes of a network small enough for tests, as overrides, and overrides as options; few sets."""

from __future__ import annotations

from collections.abc import Iterable

from metamae.data.pocket import POCKET

FIRST_NINE = POCKET[:9]
"""The pocket sets of the published tables; every modality is among them."""

SIZES = (
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2"),
    *("decoder.width=16", "decoder.depth=1", "decoder.heads=2"),
    *("contrast.hidden=16", "contrast.out=8"),
)


def as_options(overrides: Iterable[str]) -> list[str]:
    """Overrides as options of a command: ``--set KEY=VALUE`` for each."""
    return [part for override in overrides for part in ("--set", override)]
