"""What a comparison compares: a representation, and what learns on it from a few labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from metamae.data.dataset import Dataset
from metamae.evaluation.components import component_features
from metamae.evaluation.feature_cache import Pooling
from metamae.evaluation.features import Features
from metamae.evaluation.field import describe_field, field_features
from metamae.evaluation.raw import raw_features

POOLED: Mapping[Pooling, str] = MappingProxyType(
    {
        "mean": "mean of tokens",
        "tokens": "components of all tokens",
        "joined": "components of all tokens, joined with those of the inputs",
        "gradients": "mean of tokens beside inner gradients",
        "all": "all tokens",
    }
)
"""What becomes of the features of tokens, in words."""

Representation = Literal["raw", "components", "field", "encoder", "network"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to get from a few labels to predictions.

    Attributes:
        name: Its name in files.
        title: Its name in sentences and figures.
        representation: What is learned on: raw inputs, components, features made by hand, features
            of a frozen encoder; or the network itself is trained.
        learner: One of :data:`~metamae.evaluation.learners.LEARNERS`.
        method: How the encoder was pretrained; ``random`` for not at all.
        what: What it is, in a line.
    """

    name: str
    title: str
    representation: Representation
    learner: str = "linear"
    method: str = ""
    what: str = ""

    @property
    def pretrained(self) -> bool:
        """Whether it needs pretraining."""
        return self.representation == "encoder" and self.method != "random"

    @property
    def seeded(self) -> bool:
        """Whether it depends on a seed of its own, apart from the draws."""
        return self.representation == "encoder"


_ALL = (
    Candidate(
        name="raw_logistic",
        title="raw + logistic",
        representation="raw",
        what="standardised inputs, logistic regression",
    ),
    Candidate(
        name="raw_boosting",
        title="gradient boosting",
        representation="raw",
        learner="trees",
        what="inputs, 100 rounds of boosted trees for every class",
    ),
    Candidate(
        name="raw_neighbours",
        title="raw + neighbours",
        representation="raw",
        learner="neighbours",
        what="standardised inputs, nearest labelled rows by cosine",
    ),
    Candidate(
        name="components",
        title="PCA + logistic",
        representation="components",
        what="principal components with 90 % of the variance (up to 64), logistic regression",
    ),
    Candidate(
        name="field",
        title="features by hand",
        representation="field",
        what="{field}, logistic regression",
    ),
    Candidate(
        name="random",
        title="untrained encoder",
        representation="encoder",
        method="random",
        what="the encoder with its initial weights, frozen, logistic regression",
    ),
    Candidate(
        name="scratch",
        title="from scratch",
        representation="network",
        what="the same network trained on the labels alone, 60 to 300 steps",
    ),
    Candidate(
        name="mae",
        title="MAE",
        representation="encoder",
        method="mae",
        what="pretrained by masked autoencoding, frozen, logistic regression",
    ),
    Candidate(
        name="umae",
        title="U-MAE",
        representation="encoder",
        method="umae",
        what="the same with a term that spreads features, frozen, logistic regression",
    ),
    Candidate(
        name="metamae",
        title="MetaMAE",
        representation="encoder",
        method="metamae",
        what="pretrained by MetaMAE, frozen, logistic regression",
    ),
)

CANDIDATES: Mapping[str, Candidate] = MappingProxyType({c.name: c for c in _ALL})
"""All of them by name, in the order of tables and figures."""


def title_of(candidate: Candidate, dataset: Dataset) -> str:
    """Its name in sentences: features made by hand are called what they are.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.evaluation.candidates import CANDIDATES, title_of
        >>> title_of(CANDIDATES["field"], load_dataset("sensors"))
        'window statistics + logistic'
        >>> title_of(CANDIDATES["mae"], load_dataset("sensors"))
        'MAE'
    """
    title = candidate.title
    if candidate.representation == "field":
        title = f"{describe_field(dataset.inputs)} + logistic"
    ridge = dataset.need_task().kind == "regression"
    return title.replace("logistic", "ridge") if ridge else title


def describe(candidate: Candidate, dataset: Dataset, pooling: Pooling = "mean") -> str:
    """What it is, in a line; of an encoder, what becomes of the features of its tokens too."""
    text = candidate.what.format(field=describe_field(dataset.inputs))
    ridge = dataset.need_task().kind == "regression"
    if candidate.representation == "encoder":
        text += f"; {POOLED[pooling]}"
    return text.replace("logistic regression", "ridge regression") if ridge else text


def applicable(dataset: Dataset) -> tuple[str, ...]:
    """Names of the candidates that a data set allows: not every kind of input has features by hand.

    Example:
        >>> from metamae import load_dataset
        >>> from metamae.evaluation.candidates import applicable
        >>> "field" in applicable(load_dataset("tabular"))
        False
    """
    return tuple(
        name
        for name, candidate in CANDIDATES.items()
        if candidate.representation != "field" or describe_field(dataset.inputs)
    )


def plain_features(representation: Representation, dataset: Dataset) -> Features:
    """Features that take no encoder."""
    makers = {"raw": raw_features, "components": component_features, "field": field_features}
    return makers[representation](dataset)
