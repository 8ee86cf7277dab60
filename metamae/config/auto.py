"""The preset ``auto``: sizes and settings for data nobody has tuned on, of any modality.

Inputs are standardised, so nothing here depends on the data's units; what is chosen depends on the
kinds of inputs, the number of tokens and the number of rows alone.
"""

from __future__ import annotations

from typing import Any

from metamae.inputs import Inputs, Tabular, Tokens

SMALL, LARGE = 20_000, 20_000_000
"""Tokens of all rows below which a smaller network is taken, and above which a larger one is."""
MANY = 64
"""Tokens above which neighbours say so much of each other that three quarters are masked."""
FEWEST = 8
"""Tokens of an input below which a quarter is too few to see anything of it."""
LEAST_BATCH = 2
"""Examples of a batch: a contrast needs two."""


def auto_values(inputs: Inputs, rows: int, steps: int, method: str = "metamae") -> dict[str, Any]:
    """Sections of a configuration.

    * The inner step is 20 where all inputs are real numbers and 0.1 with symbols: squared errors of
      standardised numbers have small gradients, and on pocket sets (tabular, sensors, digits) 20
      was chosen on validation rows, where 0.5 did next to nothing; cross-entropy over symbols has
      larger ones, and 0.1 served letters.
    * MetaMAE's contrast is left out where all inputs are real numbers: on validation cuts of four
      pocket sets it cost up to three points with few labels, and gained less than one anywhere.
      With symbols, where that was not asked, it weighs 0.1; that of ``mae_contrast``, which is
      nothing without it, 0.1 and 0.5.
    * The content of a token is brought to the size of its position where all inputs are real
      numbers: by the published initial values it is a tenth to four fifths of that. On validation
      cuts of four pocket sets MAE and MetaMAE gained, with few labels and with all. Symbols were
      not asked.
    * The learning rate is 1e-3 for signals and images and 5e-4 where there is a table or symbols,
      with warm-up and cosine: at a constant 1e-3 plain MAE collapsed on a table, at 3e-4 it
      learned. The gradient's norm is bounded, for data may hold outliers.
    * Half is masked, and three quarters of signals and images of more than 64 tokens, whose
      neighbours say much of each other, unless one of them has fewer than 8. Rate and ratio of
      signals and images were chosen on validation cuts of two pocket sets (digits, sensors).

    Args:
        inputs: Specifications of the inputs.
        rows: Rows to pretrain on.
        steps: Optimisation steps.
        method: Its name.

    Example:
        >>> from metamae.config.auto import auto_values
        >>> from metamae.inputs import Tabular
        >>> values = auto_values((Tabular(name="row", columns=10),), rows=5000, steps=300)
        >>> values["adaptation"], values["training"]["batch_size"]
        ({'step_size': 20.0}, 128)
    """
    tokens, least = sum(spec.tokens for spec in inputs), min(spec.tokens for spec in inputs)
    width, depth = _size(rows * tokens)
    symbols = any(isinstance(spec, Tokens) for spec in inputs)
    single = any(isinstance(spec, Tokens | Tabular) for spec in inputs)
    batch = _batch(rows)
    dense = tokens > MANY and least >= FEWEST
    return {
        "encoder": {
            "width": width,
            "depth": depth,
            "heads": 4,
            "mlp_ratio": 2.0,
            "content_scale": "published" if symbols else "positions",
        },
        "decoder": {"width": width // 2, "depth": 2, "heads": 4, "mlp_ratio": 2.0},
        "masking": {"mask_ratio": 0.75 if dense and not single else 0.5, "nearby_ratio": 0.1},
        "adaptation": {"step_size": 0.1 if symbols else 20.0},
        "contrast": {"weight": _contrast_weight(symbols, method), "temperature": 0.5},
        "training": {
            "steps": steps,
            "batch_size": batch,
            "learning_rate": 5e-4 if single else 1e-3,
            "schedule": "cosine",
            "warmup_steps": min(200, steps // 10),
            "clip_norm": 1.0,
            "compile": "off",  # compiling takes minutes, and the budget is minutes
            "checkpoint_every": max(50, steps // 10),
        },
        "probe": {"epochs": 100, "batch_size": 64, "learning_rate": 1e-3, "standardise": True},
    }


def _contrast_weight(symbols: bool, method: str) -> float:
    if symbols:
        return 0.1
    return 0.0 if method == "metamae" else 0.5


def _size(tokens: int) -> tuple[int, int]:
    """Width and depth of the encoder."""
    if tokens < SMALL:
        return 64, 2
    return (128, 4) if tokens < LARGE else (192, 6)


def _batch(rows: int) -> int:
    """A power of two: 128 where there are 512 rows, less where there are fewer."""
    batch = 128
    while batch > LEAST_BATCH and 4 * batch > rows:
        batch //= 2
    return batch
