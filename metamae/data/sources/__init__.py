"""Readers of the full data sets, each imported when it is asked for."""
