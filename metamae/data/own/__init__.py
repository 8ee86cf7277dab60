"""Own data by path: tables, arrays, folders of pictures and sounds become data sets.

What a thing is, is guessed from its shape and said, with how to overrule it. :func:`open_data`
gives a data set to pretrain on and probe; its recipe, plain values, is all that
:func:`read_like` needs to read other data of the kind. ``docs/your-data.md`` is the guide.
"""

from metamae.data.own.guessing import KINDS
from metamae.data.own.opening import Examples, Opened, open_data, read_like
from metamae.data.own.sources import is_path

__all__ = ["KINDS", "Examples", "Opened", "is_path", "open_data", "read_like"]
