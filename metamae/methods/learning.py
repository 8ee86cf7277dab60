r"""MetaMAE whose settings are parameters: the losses of a bilevel problem over its weights.

The outer objective judges every setting on one fixed task, *the reference*: the query loss of
held-out unlabelled examples after refinement, at fixed mask ratios and a fixed nearby ratio, and a
contrast of fixed weight. The training loss itself could not judge them: it falls when fewer tokens
are masked, or when the contrast is switched off, whatever is learned. docs/multilevel.md derives
the gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from metalearn import LatentAdapter, LearnedStepSize, MultilevelError, TaskContrastiveLoss
from metalearn.contrast import nt_xent
from metalearn.multilevel.ranges import Bounded, Positive
from metamae.config.schema import Config
from metamae.errors import ConfigError
from metamae.inputs import Batch
from metamae.methods.metamae import MetaMAE, refine
from metamae.methods.method import PretextLoss
from metamae.methods.ratios import MaskRatios, MixedRatioSplit, RatioPart
from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.masking import Split


class LearningMetaMAE(MetaMAE):
    r"""MetaMAE that reads its settings from parameters of an outer level.

    Args:
        network: The masked autoencoder.
        adapter: Refines the latent; its step size is a parameter if ``step_size`` is learned.
        contrast: Aligns both latents.
        settings: The learned settings by name, among :data:`metamae.config.sections.LEARNABLE`.
        fixed: The configuration, for what is not learned.

    ``forward`` is the training loss under a :class:`MixedRatioSplit`, ``reference`` the outer one.
    """

    def __init__(
        self,
        network: MaskedAutoencoder,
        adapter: LatentAdapter,
        contrast: TaskContrastiveLoss | None,
        settings: nn.ModuleDict,
        fixed: Config,
    ) -> None:
        """See the class."""
        super().__init__(network, adapter, contrast, contrast_weight=fixed.contrast.weight)
        self.settings, self.fixed = settings, fixed
        self.mask_ratios = MaskRatios(network.inputs, fixed.decoder.query_fraction)

    def value(self, name: str) -> Tensor | float:
        """A setting: what is learned, or what the configuration says."""
        if name in self.settings:
            module = self.settings[name]
            value: Tensor = module(0, 0)[0] if isinstance(module, LearnedStepSize) else module()
            return value
        return initial_value(name, self.fixed)

    def values(self) -> dict[str, float]:
        """The learned settings as numbers; of the mask ratio, the mean."""
        with torch.no_grad():
            values = {name: float(self.value(name)) for name in self.settings}
            if "mask_ratio" in values:
                values["mask_ratio"] = float((self.log_probabilities().exp() * self.ratios).sum())
        return values

    @property
    def ratios(self) -> Tensor:
        """The grid on the device of the weights."""
        return self.mask_ratios.ratios.to(next(self.parameters()).device)

    def log_probabilities(self) -> Tensor:
        r"""Of each ratio: :math:`-(r_k - \mu)^2 / 2\sigma^2`, normalised."""
        distance = (self.ratios - self.value("mask_ratio")) / self.fixed.learn.mask_spread
        return (-distance.square() / 2).log_softmax(0)

    def draw_training(self, batch_size: int, generator: torch.Generator) -> MixedRatioSplit:
        """The draw of a training step: two halves at two random ratios if the ratio is learned."""
        if "mask_ratio" not in self.settings:
            chosen = [self.mask_ratios.nearest(self.fixed.masking.mask_ratio)]
        else:
            with torch.no_grad():
                levels = self.log_probabilities().exp().cumsum(0).cpu()
            chosen = torch.searchsorted(levels[:-1], torch.rand(2, generator=generator)).tolist()
        with torch.no_grad():
            nearby = float(self.value("nearby_ratio"))
        return self._draw_parts(chosen, batch_size, nearby, generator)

    def draw_reference(self, batch_size: int, generator: torch.Generator) -> MixedRatioSplit:
        """The draw of a reference loss: equal parts at the fixed ratios, every token scored."""
        learn = self.fixed.learn
        chosen = [self.mask_ratios.nearest(ratio) for ratio in learn.reference_ratios]
        draw = self._draw_parts(chosen, batch_size, learn.reference_nearby, generator)
        whole = (replace(part, split=replace(part.split, scored=None)) for part in draw.parts)
        return MixedRatioSplit(tuple(whole))

    def _draw_parts(
        self, chosen: Sequence[int], size: int, nearby: float, generator: torch.Generator
    ) -> MixedRatioSplit:
        ends = [size * (n + 1) // len(chosen) for n in range(len(chosen))]
        return MixedRatioSplit(
            tuple(
                RatioPart(
                    slice(start, end), k, self.mask_ratios.draw(k, end - start, nearby, generator)
                )
                for k, start, end in zip(chosen, [0, *ends], ends, strict=False)
                if end > start
            )
        )

    def forward(self, batch: Batch, draw: Split | MixedRatioSplit) -> PretextLoss:
        """Training loss of a batch; of an ordinary split, MetaMAE's own."""
        if isinstance(draw, Split):
            return super().forward(batch, draw)
        self.check(batch, len(draw))
        nearby = self.value("nearby_ratio")
        # Value 1; its derivative makes a drawn token's weight that of its expectation.
        scale = nearby / nearby.detach() if isinstance(nearby, Tensor) else 1.0
        results = [self._evaluate(batch, part, scale) for part in draw.parts]
        shares = [len(part.split.support_idx) / len(draw) for part in draw.parts]
        query = sum(
            (share * result[0] for share, result in zip(shares, results, strict=True)),
            start=torch.zeros((), device=results[0][0].device),
        )
        terms = {"query": query.detach()}
        loss = query + self._score(draw, [result[0] for result in results])
        if self.meta.contrast is not None:
            contrast = self._contrast(results, self.value("temperature"))
            terms["contrast"] = contrast.detach()
            loss = loss + self.value("contrast_weight") * contrast
        return PretextLoss(loss, terms)

    def reference(self, batch: Batch, draw: MixedRatioSplit) -> Tensor:
        r"""The outer objective, one fixed task: no learned setting but the step size enters it.

        .. math:: L_{ref} = \frac{1}{P} \sum_p L_{query}^{(p)} + \lambda_{ref}\, L_{contrast}

        over parts :math:`p`, with ``learn.reference_contrast`` and the configured temperature.
        """
        self.check(batch, len(draw))
        results = [self._evaluate(batch, part, 1.0) for part in draw.parts]
        loss = torch.stack([result[0] for result in results]).mean()
        weight = self.fixed.learn.reference_contrast
        if weight == 0 or self.meta.contrast is None:
            return loss
        return loss + weight * self._contrast(results, initial_value("temperature", self.fixed))

    def _evaluate(
        self, batch: Batch, part: RatioPart, scale: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query loss, and both pooled latents, of a part."""
        network = self._view(part.ratio, scale)
        rows = {name: x[part.rows] for name, x in batch.items()}
        targets, latent, refined, _ = refine(network, self.meta.adapter, rows, part.split)
        query = network.query_loss(refined, targets, part.split).mean()
        # Pooled without the class token: (B, 1 + S, D) -> (B, D).
        return query, latent[:, 1:].mean(1), refined[:, 1:].mean(1)

    def _view(self, ratio: int, scale: Tensor | float) -> MaskedAutoencoder:
        """The same network, the very same weights, reading splits of another ratio."""
        view = copy.copy(self.network)
        view.masking, view.nearby_scale = self.mask_ratios.maskings[ratio], scale
        return view

    def _contrast(
        self, results: Sequence[tuple[Tensor, Tensor, Tensor]], temperature: Tensor | float
    ) -> Tensor:
        """Contrast over all evaluated parts at once: negatives do not know of ratios."""
        contrast = self.meta.contrast
        assert contrast is not None
        _, latents, refined = zip(*results, strict=True)
        first, second = (contrast.projector(torch.cat(x)) for x in (latents, refined))
        return nt_xent(first, second, temperature)

    def _score(self, draw: MixedRatioSplit, queries: Sequence[Tensor]) -> Tensor | float:
        r"""Zero, with the derivative of a leave-one-out score-function estimate.

        .. math:: \tfrac12 (\ell_A - \ell_B - \mathrm{const})\,(L_A - L_B), \quad
            \ell = \log p_k

        The constant makes the first factor zero, so the gradient in the weights is untouched; its
        derivative by :math:`\mu` is not zero.
        """
        if "mask_ratio" not in self.settings or len(draw.parts) < 2:
            return 0.0
        logs = self.log_probabilities()
        first, second = draw.parts
        difference = logs[first.ratio] - logs[second.ratio]
        return (difference - difference.detach()) * (queries[0] - queries[1]) / 2

    @torch.no_grad()
    def monitor(self, batch: Batch, draw: Split | MixedRatioSplit) -> dict[str, float]:
        """Mean support loss before and after refinement, of the first part."""
        if isinstance(draw, Split):
            return super().monitor(batch, draw)
        part = draw.parts[0]
        rows = {name: x[part.rows] for name, x in batch.items()}
        return self.support_losses(self._view(part.ratio, 1.0), rows, part.split)


def initial_value(name: str, config: Config) -> float:
    """What the configuration says about a setting."""
    return {
        "step_size": config.adaptation.step_size,
        "contrast_weight": config.contrast.weight,
        "temperature": config.contrast.temperature,
        "nearby_ratio": config.masking.nearby_ratio,
        "mask_ratio": config.masking.mask_ratio,
    }[name]


def build_learning(
    config: Config,
    network: MaskedAutoencoder,
    adapter: LatentAdapter,
    contrast: TaskContrastiveLoss | None,
) -> LearningMetaMAE:
    """MetaMAE with its settings as parameters, starting at the configured values.

    Raises:
        ConfigError: a start from which nothing can be learned, such as a weight of 0, or settings
            that two optimisers would learn.
    """
    names = config.learn.settings
    if "step_size" in names and config.adaptation.learned != "none":
        raise ConfigError(
            "expected adaptation.learned=none where learn.settings names step_size, got "
            f"{config.adaptation.learned!r}; the outer level and the training would both learn it"
        )
    if contrast is None and {"contrast_weight", "temperature"} & set(names):
        raise ConfigError(
            "expected contrast.weight > 0 where contrast_weight or temperature is learned, got 0; "
            "start from a small positive weight"
        )
    grid, built = MaskRatios(network.inputs), nn.ModuleDict()
    for name in names:
        start = initial_value(name, config)
        try:
            if name == "step_size":
                built[name] = adapter.step_size
            elif name == "mask_ratio":
                built[name] = Bounded(start, float(grid.ratios.min()), float(grid.ratios.max()))
            else:
                built[name] = Bounded(start) if name == "nearby_ratio" else Positive(start)
        except MultilevelError as fault:
            raise ConfigError(f"expected a start of {name} that can be learned: {fault}") from fault
    return LearningMetaMAE(network, adapter, contrast, built, config)
