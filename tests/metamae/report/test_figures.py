"""Pictures: predictions stand where they were made, and every modality can be drawn."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from metamae import MAE, build_method, load_dataset, make_config
from metamae.config.names import METHODS
from metamae.data.dataset import Dataset
from metamae.data.pocket import POCKET
from metamae.inputs import Tokens
from metamae.methods.reconstruction import reconstruct
from metamae.model.masking import Split
from metamae.randomness import generator
from metamae.report.curves import draw_curves
from metamae.report.listings import height_of, list_values, list_words
from metamae.report.reconstructions import draw_reconstructions
from tests.tiny import FIRST_NINE, SIZES

TINY = [
    *SIZES,
    *("adaptation.step_size=5.0",),
]


@cache
def tiny(name: str, method: str = "metamae") -> tuple[MAE, Dataset]:
    data = load_dataset(name)
    config = make_config(name, method=method, overrides=TINY)
    return build_method(config, data.inputs).eval(), data


def picture(path: Path) -> np.ndarray:
    """Read a PNG: height x width x RGBA, and check that something is drawn on it."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    image = imread(path)
    assert image.ndim == 3
    assert image[..., :3].std() > 0.02
    return image


@pytest.mark.parametrize("name", POCKET)
def test_visible_tokens_are_copied_and_masked_ones_predicted(name: str) -> None:
    """Token by token, against the network's own predictions and the split's own indices."""
    method, data = tiny(name)
    network = method.network
    batch = data.test.batch([0, 5, 9])
    split: Split = method.draw(3, generator(0, "test"))
    targets = network.tokenizer.targets(batch)
    latent, _ = method.latents(batch, split)
    with torch.no_grad():
        result = reconstruct(method, latent, targets, split)
        predictions = network.predict(latent, split)
    offset, first = 0, [0, 0]  # of the joined tokens; of the support's and the query's columns
    counts = zip(network.masking.support_counts, network.masking.query_counts, strict=True)
    for spec, (visible, masked) in zip(data.inputs, counts, strict=True):
        truth, got, query = targets[spec.name], result[spec.name], predictions[spec.name][1]
        if isinstance(spec, Tokens):
            query = query.argmax(-1)
        assert got.shape == truth.shape
        assert got.dtype == truth.dtype
        assert visible + masked == spec.tokens
        for row in range(3):
            shown = split.support_idx[row, first[0] : first[0] + visible] - offset
            hidden = split.query_idx[row, first[1] : first[1] + masked] - offset
            assert sorted([*shown.tolist(), *hidden.tolist()]) == list(range(spec.tokens))
            assert torch.equal(got[row, shown], truth[row, shown])
            torch.testing.assert_close(got[row, hidden], query[row])
            changed = (got[row, hidden] != truth[row, hidden]).reshape(masked, -1).any(1)
            assert changed.float().mean() > (0.2 if isinstance(spec, Tokens) else 0.99)
        offset, first = offset + spec.tokens, [first[0] + visible, first[1] + masked]


@pytest.mark.parametrize("name", FIRST_NINE)
def test_every_modality_can_be_drawn(name: str, tmp_path: Path) -> None:
    """Without warnings; one line of four panels per example and input."""
    method, data = tiny(name)
    draw_reconstructions(method, data.test, tmp_path / "a.png", examples=1)
    height, width, _ = picture(tmp_path / "a.png").shape
    assert width == 13 * 110
    inches = sum(height_of(spec) for spec in data.inputs) + 0.6
    assert height == pytest.approx(inches * 110, abs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_columns_are_named_and_true_values_shown_beside_predictions() -> None:
    """Visible ones are drawn as they are, masked ones as a ring and a dot; gaps are called so."""
    axis = Figure().subplots()
    truth, shown = np.array([1.0, np.nan, 3.0]), np.array([1.0, 0.5, 2.0])
    hidden = np.array([False, False, True])
    list_values(axis, ("age", "height", "a column with a long name"), truth, shown, hidden)
    visible, rings, dots = (np.asarray(line.get_xdata()) for line in axis.get_lines()[:3])
    np.testing.assert_equal(visible, [1, np.nan, np.nan])
    np.testing.assert_equal(rings, [np.nan, np.nan, 3])
    np.testing.assert_equal(dots, [np.nan, np.nan, 2])
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["age", "height", "a column with a l…"]
    assert [text.get_text() for text in axis.texts] == ["missing"]
    assert axis.get_xlim()[1] > 3


def test_words_are_coloured_by_whether_they_are_right() -> None:
    axis = Figure().subplots()
    spec = Tokens(name="c", length=3, vocabulary=3, alphabet=("town=Rome", "town=Oslo", "tea=yes"))
    hidden = np.array([True, True, False])
    list_words(axis, spec, np.array([0, 1, 2]), np.array([0, 0, 2]), hidden)
    drawn = [(text.get_text(), text.get_color()) for text in axis.texts]
    assert drawn == [
        ("town: Rome", "#1b9e77"),
        ("town: Rome", "#d62728"),
        ("tea: yes", "black"),
    ]


def panels(path: Path) -> list[np.ndarray]:
    """The four columns of a picture, without the titles."""
    return np.array_split(picture(path)[60:], 4, axis=1)


def test_panels_show_different_things(tmp_path: Path) -> None:
    """The masked input is not the original, a prediction neither, and the two latents differ."""
    method, data = tiny("sensors")
    draw_reconstructions(method, data.test, tmp_path / "a.png", examples=1)
    original, masked, before, after = panels(tmp_path / "a.png")
    size = min(panel.shape[1] for panel in (original, masked, before, after))
    original, masked, before, after = (p[:, :size] for p in (original, masked, before, after))
    for one, other in ((original, masked), (original, before), (masked, before), (before, after)):
        assert np.abs(one - other).max() > 0.1


def test_mae_predicts_the_same_from_both_latents() -> None:
    method, data = tiny("sensors", "mae")
    batch, split = data.test.batch([0, 1]), method.draw(2, generator(0, "test"))
    before, after = method.latents(batch, split)
    assert torch.equal(before, after)
    method, _ = tiny("sensors")
    before, after = method.latents(batch, split)
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("examples", [1, 2])
def test_the_seed_decides_the_masks_and_examples_their_number(
    tmp_path: Path, examples: int
) -> None:
    method, data = tiny("basic_motions")
    images = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.png"
        draw_reconstructions(method, data.test, path, examples=examples, seed=seed)
        images[name] = picture(path)
    assert images["a"].shape[0] == pytest.approx((1.9 * examples + 0.6) * 110, abs=1)
    assert np.array_equal(images["a"], images["b"])
    assert not np.array_equal(images["a"], images["c"])


def test_drawing_leaves_no_gradients_and_no_figures(tmp_path: Path) -> None:
    method, data = tiny("digits")
    draw_reconstructions(method, data.test, tmp_path / "a.png", examples=1)
    assert all(weight.grad is None for weight in method.parameters())
    assert not pyplot.get_fignums()


def history(steps: int, *, meta: bool, level: float = 1.0) -> dict[str, list[list[float]]]:
    names = ("loss", "query", *(("support_before", "support_after") if meta else ()))
    return {name: [[1 + 10 * i, level / (1 + i)] for i in range(steps)] for name in names}


@pytest.mark.parametrize("steps", [1, 2, 40])
@pytest.mark.parametrize("seeds", [1, 3])
def test_curves_are_drawn(tmp_path: Path, steps: int, seeds: int) -> None:
    runs = {
        method: [history(steps, meta=method == "metamae", level=2.0 + s) for s in range(seeds)]
        for method in ("mae", "metamae")
    }
    draw_curves(runs, tmp_path / "curves.png")
    assert picture(tmp_path / "curves.png").shape[1] == 11 * 110


def test_losses_of_other_methods_get_a_panel_of_their_own(tmp_path: Path) -> None:
    """All eight methods: three panels, and scale does not matter in the one in the middle."""
    others = [m for m in METHODS if m not in ("random", "mae", "metamae")]
    images = []
    for number, scale in enumerate((1.0, 1000.0)):
        runs: dict[str, list[dict[str, list[list[float]]]]] = {
            method: [{"loss": history(9, meta=False, level=scale)["loss"]}] for method in others
        }
        runs |= {"mae": [history(9, meta=False)], "metamae": [history(9, meta=True)]}
        draw_curves(runs, tmp_path / f"{number}.png")
        images.append(picture(tmp_path / f"{number}.png"))
    assert images[0].shape[1] == 3 * 5.5 * 110
    assert np.array_equal(images[0], images[1])


def test_curves_without_a_loss_on_masked_tokens_can_be_drawn(tmp_path: Path) -> None:
    """Also of a loss that starts at zero."""
    runs = {"shed": [{"loss": [[1, 0.0], [2, 0.5]]}], "supervised": [{"loss": [[1, 2.0]]}]}
    draw_curves(runs, tmp_path / "curves.png")
    picture(tmp_path / "curves.png")


def test_curves_of_mae_alone_say_that_nothing_was_refined(tmp_path: Path) -> None:
    draw_curves({"mae": [history(9, meta=False)]}, tmp_path / "mae.png")
    draw_curves({"metamae": [history(9, meta=True)]}, tmp_path / "meta.png")
    mae, meta = (picture(tmp_path / f"{name}.png") for name in ("mae", "meta"))
    half = mae.shape[1] // 2
    assert (mae[:, half:, :3].mean() - meta[:, half:, :3].mean()) > 1e-3  # less ink


def test_histories_of_unlike_lengths_can_be_drawn(tmp_path: Path) -> None:
    """Such as a seed that was resumed with other logging."""
    runs = [history(9, meta=True), history(12, meta=True)]
    draw_curves({"metamae": runs}, tmp_path / "curves.png")
    picture(tmp_path / "curves.png")


def test_reconstruction_does_not_change_its_arguments() -> None:
    method, data = tiny("captioned")
    batch, split = data.test.batch([0, 1]), method.draw(2, generator(0, "test"))
    targets = method.network.tokenizer.targets(batch)
    copies: dict[str, Tensor] = {name: tokens.clone() for name, tokens in targets.items()}
    latent, _ = method.latents(batch, split)
    with torch.no_grad():
        reconstruct(method, latent, targets, split)
    assert all(torch.equal(targets[name], copies[name]) for name in copies)
