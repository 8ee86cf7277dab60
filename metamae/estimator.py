"""The scikit-learn door: pretraining as ``fit``, embeddings as ``transform``."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from metamae.arguments import is_whole
from metamae.artefact import load
from metamae.artefact.encoder import Encoder
from metamae.data.dataset import Array, Partition
from metamae.data.own import open_data, read_like
from metamae.data.own.frames import is_frame
from metamae.errors import ConfigError
from metamae.training.auto import auto_config
from metamae.training.devices import choose_device
from metamae.training.pretraining import pretrain


class MetaMAEEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A masked autoencoder that learns features from unlabelled data.

    ``fit`` pretrains on all rows and takes no labels; ``transform`` gives the features of unmasked
    rows. It is a transformer like any other: in pipelines and searches, cloned and pickled. Where
    you want a run folder, a log or a run that can be resumed, use ``metamae pretrain``; ``fit``
    leaves no files.

    Data are arrays or data frames: ``(N, columns)`` is a table, in which cells may be missing
    (NaN), ``(N, channels, steps)`` a signal, ``(N, height, width)`` and ``(N, height, width,
    channels)`` an image. Data frames may hold texts and categories. ``kind`` overrules, for
    instance ``"tokens"`` for ``(N, length)`` whole numbers.

    Args:
        method: Pretraining method; ``"random"`` does not train.
        steps: Optimisation steps.
        minutes: Time budget instead; 5 where neither is given. The number of steps then depends on
            the machine, and so do the features.
        preset: Only ``"auto"``: sizes that follow from the data.
        random_state: Seed of weights, order and masks. The same number gives the same bits.
        kind: ``"table"``, ``"signal"``, ``"image"`` or ``"tokens"``; ``"auto"`` goes by the shape.
        token_size: Steps of a token, or height and width of a patch; empty chooses.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        overrides: Settings such as ``"masking.mask_ratio=0.6"``.
        batch_size: Rows that ``transform`` computes at once.

    Attributes:
        encoder_: The trained encoder (:class:`metamae.artefact.Encoder`), with the configuration
            and a ``save`` that makes a folder of it.
        n_features_in_: Columns, or the size of the second axis.
        feature_names_in_: Names of the columns, of a data frame.

    Raises:
        ConfigError: impossible settings.
        DataError: data that cannot be learned from. Both are ``ValueError``.

    Example:
        >>> import numpy as np
        >>> from metamae import MetaMAEEncoder
        >>> signals = np.random.default_rng(0).normal(size=(20, 3, 100))
        >>> encoder = MetaMAEEncoder(steps=2, random_state=0).fit(signals)
        >>> encoder.transform(signals).shape
        (20, 64)
    """

    def __init__(
        self,
        method: str = "metamae",
        steps: int | None = None,
        minutes: float | None = None,
        preset: str = "auto",
        random_state: Any = None,
        kind: str = "auto",
        token_size: Sequence[int] = (),
        device: str = "auto",
        overrides: Sequence[str] = (),
        batch_size: int = 256,
    ) -> None:
        """See the class."""
        self.method = method
        self.steps = steps
        self.minutes = minutes
        self.preset = preset
        self.random_state = random_state
        self.kind = kind
        self.token_size = token_size
        self.device = device
        self.overrides = overrides
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> MetaMAEEncoder:
        """Pretrain on all rows.

        Args:
            X: The data.
            y: Not used: features are learned without labels.
        """
        self._check_settings()
        data, device = self._validated(X, reset=True), choose_device(self.device)
        opened = open_data(data, kind=self._kind_of(data), token_size=tuple(self.token_size))
        config = auto_config(
            opened.dataset,
            method=self.method,
            seed=self._seed(),
            minutes=self.minutes,
            steps=self.steps,
            overrides=tuple(self.overrides),
            device=device,
        )
        with tempfile.TemporaryDirectory() as folder:
            pretrain(config, opened.dataset, Path(folder), device=device)
            self.encoder_: Encoder = load(folder, device=str(device))
        self._n_features_out = self.encoder_.width
        return self

    def transform(self, X: Any) -> Array:
        """Features of unmasked rows, float64 ``(N, D)``, in their order.

        They are computed in float64, so that those of a row do not depend on the rows beside it.
        """
        check_is_fitted(self)
        data = self._validated(X, reset=False)
        examples = read_like(data, self.encoder_.description)
        return _embed(self.encoder_, examples.partition, self.batch_size)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: cells may be missing, and there may be more axes."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def _validated(self, X: Any, *, reset: bool) -> Any:
        """Data as they are read: a frame as it is, an array of finite numbers or gaps."""
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        if isinstance(X, list | tuple) or (hasattr(X, "__array__") and not hasattr(X, "tocsr")):
            several = np.asarray(X)
            if several.ndim > 2:
                validate_data(self, several, reset=reset, skip_check_array=True)
                return several
        least = {"ensure_min_samples": 2, "ensure_min_features": 2} if reset else {}
        array: Array = validate_data(
            self,
            X,
            reset=reset,
            dtype="numeric" if self.kind == "tokens" else [np.float64, np.float32],
            ensure_all_finite="allow-nan",
            **least,
        )
        return array

    def _kind_of(self, data: Any) -> str:
        flat = isinstance(data, np.ndarray) and data.ndim == 2
        return "table" if flat and self.kind == "auto" else self.kind

    def _seed(self) -> int:
        if is_whole(self.random_state):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _check_settings(self) -> None:
        if self.preset != "auto":
            raise ConfigError(f"expected preset 'auto', got {self.preset!r}; use overrides")
        if self.minutes is not None and self.steps is not None:
            raise ConfigError("expected steps or minutes of pretraining, got both")
        if self.steps is not None and (not is_whole(self.steps) or self.steps < 0):
            raise ConfigError(f"expected steps >= 0, got {self.steps!r}")
        if not is_whole(self.batch_size) or self.batch_size < 1:
            raise ConfigError(f"expected batch_size >= 1, got {self.batch_size!r}")


@torch.no_grad()
def _embed(encoder: Encoder, data: Partition, batch_size: int) -> Array:
    network = copy.deepcopy(encoder.method.network).double().eval()
    parts = []
    for start in range(0, len(data), batch_size):
        batch = data.batch(slice(start, start + batch_size))
        wide = {
            name: (x.double() if x.is_floating_point() else x).to(encoder.device)
            for name, x in batch.items()
        }
        parts.append(network.features(wide).cpu().numpy())
    features: Array = np.concatenate(parts)
    return features
