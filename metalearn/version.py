"""The version of both packages, which are released together; pyproject.toml reads it here."""

__version__ = "0.1.0"
