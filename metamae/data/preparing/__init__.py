"""From raw files to prepared arrays: what a full data set is, and how it is read once.

To add one, see :mod:`metamae.data.sources`.
"""

from metamae.data.preparing.prepared import Prepared
from metamae.data.preparing.raw import Raw
from metamae.data.preparing.source import Content, Layout, Option, Source, Stored
from metamae.data.preparing.writer import Writer

__all__ = ["Content", "Layout", "Option", "Prepared", "Raw", "Source", "Stored", "Writer"]
