"""``metamae list``: what a configuration or a command may name, a line each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from metalearn.uniformity import uniformity
from metamae.evaluation.feature_cache import FEATURES
from metamae.evaluation.protocols import FITS
from metamae.listing import lines
from metamae.methods.building import method_sources
from metamae.methods.objective import POLICIES, TERMS
from metamae.model.mask_rules import RULES
from metamae.model.teacher import TARGETS
from metamae.model.views import VIEWS

KINDS: Mapping[str, Callable[[], Mapping[str, object]]] = MappingProxyType(
    {
        "methods": method_sources,
        "masks": lambda: RULES,
        "targets": lambda: TARGETS,
        "terms": lambda: {**TERMS, "uniformity": uniformity},
        "views": lambda: VIEWS,
        "features": lambda: {str(name): compute for name, compute in FEATURES.items()},
        "policies": lambda: POLICIES,
        "protocols": lambda: FITS,
    }
)
"""Kinds of things that have names, and where each kind is registered."""


def add_list(commands: Any) -> None:
    """Add ``metamae list``."""
    parser = commands.add_parser(
        "list",
        help="what can be chosen by name: methods, gradient policies, protocols, ...",
        description="Print a line for each thing of a kind that can be chosen by name, those of "
        "other packages included.",
    )
    parser.add_argument("kind", choices=tuple(KINDS), help=f"of: {', '.join(KINDS)}")
    parser.set_defaults(run=run_list, interrupted="stopped")


def run_list(options: argparse.Namespace) -> int:
    """Run ``metamae list``."""
    for line in lines(KINDS[options.kind]()):
        print(line)
    return 0
