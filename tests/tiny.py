"""Sizes of a network small enough for tests, as overrides."""

SIZES = (
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2"),
    *("decoder.width=16", "decoder.depth=1", "decoder.heads=2"),
    *("contrast.hidden=16", "contrast.out=8"),
)
