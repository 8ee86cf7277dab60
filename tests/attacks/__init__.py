"""Attacks on files and runs that can be made again: what they find is in docs/reliability.md."""
