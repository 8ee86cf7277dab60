"""Experiments: cells of (data set, variant, method, seed), run and resumed by one runner."""

from metamae.experiments.plan import Cell, Sweep, read_sweep, resolve
from metamae.experiments.sweep import SweepRun

__all__ = ["Cell", "Sweep", "SweepRun", "read_sweep", "resolve"]
