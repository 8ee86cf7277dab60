"""Experiments: cells of (data set, variant, method, seed), run and resumed by one runner."""

from metamae.experiments.plan import Cell, Sweep, resolve
from metamae.experiments.sweep import SweepRun
from metamae.experiments.sweep_file import read_sweep

__all__ = ["Cell", "Sweep", "SweepRun", "read_sweep", "resolve"]
