"""The section ``baseline`` of a configuration: settings of the methods beside MetaMAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metamae.config.checks import check_fields, positive, require


@dataclass(frozen=True, kw_only=True)
class EMixConfig:
    """e-Mix: shares of a mixture are Beta(alpha, alpha); similarities of ``out``-wide vectors.

    Attributes:
        alpha: Of the distribution of a mixture's shares; 1 is uniform.
        temperature: Divides similarities.
        out: Width of what is compared.
        weighting: ``per_example``, or ``as_published``: batch means of shares times batch means of
            losses, to which the published code's broadcasting amounts.
    """

    alpha: float = 1.0
    temperature: float = 0.2
    out: int = 128
    weighting: Literal["per_example", "as_published"] = "per_example"

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "baseline.emix")
        require(positive(self.alpha), "baseline.emix.alpha > 0", self.alpha)
        require(positive(self.temperature), "baseline.emix.temperature > 0", self.temperature)
        require(self.out >= 1, "baseline.emix.out >= 1", self.out)


@dataclass(frozen=True, kw_only=True)
class CapriConfig:
    """Capri: which positions predict and compete, and how they are scored.

    Attributes:
        temperature: Divides similarities.
        positions: ``all`` positions, as in the published code, or the ``masked``, as it is
            described.
        normalise: Compare directions, not products of vectors.
        symmetric: Score predictions against targets and targets against predictions.
    """

    temperature: float = 0.07
    positions: Literal["all", "masked"] = "all"
    normalise: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "baseline.capri")
        require(positive(self.temperature), "baseline.capri.temperature > 0", self.temperature)


@dataclass(frozen=True, kw_only=True)
class LFRConfig:
    """LFR: what random networks, whose outputs are predicted, there are.

    Attributes:
        projectors: Random networks whose outputs are predicted.
        candidates: Drawn networks of which the most diverse are taken.
        hidden: Hidden units of a random network, and of its predictor.
        out: Numbers that a random network gives.
        redundancy: Weight of a prediction's similarity to the outputs for other examples.
    """

    projectors: int = 6
    candidates: int = 60
    hidden: int = 256
    out: int = 64
    redundancy: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "baseline.lfr")
        require(self.projectors >= 1, "baseline.lfr.projectors >= 1", self.projectors)
        enough = self.candidates >= self.projectors
        require(enough, "baseline.lfr.candidates >= baseline.lfr.projectors", self.candidates)
        require(self.hidden >= 1, "baseline.lfr.hidden >= 1", self.hidden)
        require(self.out >= 2, "baseline.lfr.out >= 2", self.out)
        require(self.redundancy >= 0, "baseline.lfr.redundancy >= 0", self.redundancy)


@dataclass(frozen=True, kw_only=True)
class GONConfig:
    """GON: how far its step from the origin goes; the rest of the step is of ``adaptation``.

    Attributes:
        step_size: In the place of ``adaptation.step_size``, which is chosen for latents of an
            encoder: of the gradient of a sum over visible tokens, not of a mean.
    """

    step_size: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "baseline.gon")
        require(positive(self.step_size), "baseline.gon.step_size > 0", self.step_size)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The baselines: those of DABS, and of the field around MetaMAE.

    Attributes:
        corruption: Share of tokens that ShED moves, and that Capri and the linear MAE zero; the
            default is DABS's, for no rate per data set was published.
        reconstruction: The linear MAE's loss of one real token: the L2 ``norm`` of its error, as
            published, or the mean ``squared`` error, as of the MAE with a deep decoder.
        uniformity: Weight of U-MAE's uniformity term.
        emix: Settings of e-Mix.
        capri: Settings of Capri.
        lfr: Settings of LFR.
        gon: Settings of GON.
    """

    corruption: float = 0.15
    reconstruction: Literal["norm", "squared"] = "norm"
    uniformity: float = 0.01
    emix: EMixConfig = field(default_factory=EMixConfig)
    capri: CapriConfig = field(default_factory=CapriConfig)
    lfr: LFRConfig = field(default_factory=LFRConfig)
    gon: GONConfig = field(default_factory=GONConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self, "baseline")
        require(0 < self.corruption < 1, "baseline.corruption in (0, 1)", self.corruption)
        require(self.uniformity >= 0, "baseline.uniformity >= 0", self.uniformity)
