"""The scikit-learn door: what scikit-learn asks of a transformer, and the same bits again."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

import metamae
from metamae import ConfigError, DataError, MetaMAEEncoder
from metamae.data.own import read_like
from tests.tiny import SIZES

TINY = MetaMAEEncoder(steps=1, overrides=(*SIZES, "encoder.width=8"), random_state=0)

QUICK = (
    "check_no_attributes_set_in_init",
    "check_estimators_dtypes",
    "check_transformer_general",
    "check_transformer_data_not_an_array",
    "check_transformer_preserve_dtypes",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_fit2d_1sample",
    "check_fit2d_1feature",
    "check_n_features_in_after_fitting",
    "check_estimators_unfitted",
    "check_dict_unchanged",
    "check_parameters_default_constructible",
)
"""Checks that run always; the others, which train more often, with --slow."""

CHECKS = list(estimator_checks_generator(TINY))


def name_of(check: Any) -> str:
    return str(getattr(check, "func", check).__name__)


def table(rows: int = 24, columns: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(rows, columns))


def test_the_quick_checks_are_there() -> None:
    assert {name_of(check) for _, check in CHECKS} >= set(QUICK)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, marks=() if name_of(check) in QUICK else pytest.mark.slow)
        for _, check in CHECKS
    ],
    ids=name_of,
)
def test_scikit_learns_own_checks(check: Any) -> None:
    """All of them, without an exception; that of the array API is skipped by scikit-learn."""
    check(clone(TINY))


def test_the_same_random_state_gives_the_same_bits_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = table()
    first, again = (clone(TINY).fit(x).transform(x) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.dtype == np.float64
    assert first.shape == (24, 8)
    other = clone(TINY).set_params(random_state=1).fit_transform(x)
    assert not np.array_equal(first, other)
    assert os.listdir(tmp_path) == []


def test_a_row_does_not_depend_on_those_beside_it_nor_a_pickle_on_its_past() -> None:
    x = table()
    encoder = clone(TINY).fit(x)
    whole = encoder.transform(x)
    np.testing.assert_allclose(encoder.transform(x[5:6])[0], whole[5], rtol=1e-12)
    encoder.set_params(batch_size=7)
    np.testing.assert_allclose(encoder.transform(x), whole, rtol=1e-12)
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).transform(x), encoder.transform(x))


def test_features_are_those_of_the_encoder_that_is_saved(tmp_path: Path) -> None:
    x = table().astype(np.float32)
    encoder = clone(TINY).fit(x)
    encoder.encoder_.save(tmp_path / "model")
    again = metamae.load(tmp_path / "model")
    assert again.config.seed == 0
    rows = read_like(x, again.description).partition
    np.testing.assert_allclose(encoder.transform(x), again.embed(rows), atol=1e-5)


def test_a_search_over_a_pipeline() -> None:
    x, y = table(30), np.arange(30) % 2
    model = make_pipeline(clone(TINY), LogisticRegression())
    search = GridSearchCV(model, {"metamaeencoder__steps": [0, 1]}, cv=2).fit(x, y)
    assert search.best_params_["metamaeencoder__steps"] in (0, 1)
    assert search.predict(x).shape == (30,)


@pytest.mark.parametrize(
    ("shape", "name"), [((12, 2, 40), "Signal"), ((12, 8, 8), "Image"), ((12, 8, 8, 3), "Image")]
)
def test_arrays_of_every_shape(shape: tuple[int, ...], name: str) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    encoder = clone(TINY).fit(x)
    assert type(encoder.encoder_.inputs[0]).__name__ == name
    assert encoder.transform(x[:3]).shape == (3, 8)
    assert encoder.get_feature_names_out()[0] == "metamaeencoder0"


def test_sequences_of_symbols_by_kind() -> None:
    x = np.random.default_rng(0).integers(0, 4, size=(12, 10))
    encoder = clone(TINY).set_params(kind="tokens").fit(x)
    assert type(encoder.encoder_.inputs[0]).__name__ == "Tokens"
    assert type(clone(TINY).fit(x).encoder_.inputs[0]).__name__ == "Tabular"


def test_data_frames_with_categories_and_gaps() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"size": [1.0, 2.0, np.nan, 4.0] * 5, "colour": ["red", "blue", "red", None] * 5}
    )
    encoder = clone(TINY).set_output(transform="pandas").fit(frame)
    features = encoder.transform(frame)
    assert list(features.columns)[:2] == ["metamaeencoder0", "metamaeencoder1"]
    assert features.shape == (20, 8)
    assert list(encoder.feature_names_in_) == ["size", "colour"]
    assert np.isfinite(features.to_numpy()).all()
    with pytest.raises(ValueError, match="feature names"):
        encoder.transform(frame.rename(columns={"size": "height"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "pocket"}, "expected preset 'auto', got 'pocket'"),
        ({"minutes": 1.0}, "expected steps or minutes of pretraining, got both"),
        ({"steps": -1}, "expected steps >= 0, got -1"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"method": "metamea"}, "did you mean 'metamae'"),
        ({"kind": "sgnal"}, "did you mean 'signal'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clone(TINY).set_params(**settings).fit(table())


def test_other_shapes_are_refused() -> None:
    encoder = clone(TINY).fit(np.zeros((12, 2, 40)) + table(12, 40)[:, None])
    with pytest.raises((DataError, ValueError), match=r"expected|features"):
        encoder.transform(np.zeros((3, 5, 40)))
