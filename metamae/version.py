"""The version, that of :mod:`metalearn`: the two are released together."""

from metalearn.version import __version__

__all__ = ["__version__"]
