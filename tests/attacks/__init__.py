"""Attacks on files and runs that can be repeated: sampled with a fixed seed, whole with --all."""
