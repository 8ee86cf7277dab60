"""File formats: one file each, none knows of a data set.

To add one, write a file here with a function that takes a file or its bytes, and the name that
errors call it by, and returns arrays or yields records. Damage is a ``DataError`` with that name;
an optional library is imported by :func:`~metamae.data.formats.libraries.need_module`, stands in
the extra ``data`` of ``pyproject.toml``, and in ``modules`` of the data sets that need it. A new
packing of files is a ``Bundle`` in ``archives.py`` and an ending in ``open_bundle``. Its test,
``tests/metamae/data/formats/test_NAME.py``, holds it against an independent reader, and against
files that are damaged.
"""
