"""The examples of inner loops learn what they are about, in a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.running import numbers_after, run_example


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_latent_embedding_optimisation_adapts_to_unseen_digits(tmp_path: Path) -> None:
    """Classes never seen in training: the inner loop raises accuracy well above before it."""
    text = run_example(
        "latent_embedding_optimisation.py", "--steps", "30", "--out", "leo", folder=tmp_path
    )
    for ink in ("dark ink", "any ink"):
        before, _, after, *_ = numbers_after(text, ink)
        assert after > before + 0.1
        assert after > 0.5  # chance is a third
    assert is_picture(tmp_path / "leo" / "accuracy.png")


def test_images_become_functions_in_a_few_steps(tmp_path: Path) -> None:
    """Each inner step helps, and the fit beats the mean image by decibels."""
    text = run_example(
        "implicit_neural_representation.py", "--steps", "60", "--out", "inr", folder=tmp_path
    )
    (mean_image,) = numbers_after(text, "the mean image: ".replace("(", r"\("))[:1]
    levels = [numbers_after(text, rf"after {steps:2d} inner steps:")[0] for steps in (0, 1, 3)]
    assert levels == sorted(levels)
    assert levels[-1] > mean_image + 1
    assert is_picture(tmp_path / "inr" / "images.png")


OTHERS = ("checkpointed", "finite_difference")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]


@pytest.mark.parametrize("policy", ["unrolled", *SLOW])
def test_maml_learns_to_fit_sines_under_any_policy(tmp_path: Path, policy: str) -> None:
    """Five steps lower the error of meta-learned parameters, and below the fine-tuned baseline's.

    Errors are printed after 0, 1, 5 and 10 steps.
    """
    text = run_example(
        "maml_sine.py", "--steps", "60", "--policy", policy, "--out", "maml", folder=tmp_path
    )
    maml = numbers_after(text, rf"MAML \({policy}\):")
    baseline = numbers_after(text, "baseline:")
    assert maml[2] < 0.75 * maml[0]
    assert maml[2] < 0.8 * baseline[2]
    assert is_picture(tmp_path / "maml" / "fits.png")
