"""e-Mix: tell which two examples a mixture of embeddings was made of (DABS, Tamkin et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamae.config.baselines import EMixConfig
from metamae.errors import ConfigError
from metamae.inputs import Batch
from metamae.methods.method import Method, Parts, PretextLoss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, without_autocast, xavier_linear


@dataclass(frozen=True)
class Mixing:
    """How the examples of a batch are mixed.

    Attributes:
        share: float32 ``(B,)``, share of the example itself, from one half to one.
        partner: int64 ``(B,)``, a permutation: which example has the rest.
    """

    share: Tensor
    partner: Tensor

    def to(self, device: torch.device | str) -> Mixing:
        """The same draw on another device."""
        return Mixing(
            self.share.to(device, non_blocking=True), self.partner.to(device, non_blocking=True)
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.share)


class EMix(Method[Mixing]):
    r"""Mixtures of embeddings have to match both of their sources.

    With contents :math:`E` (before positions), shares :math:`\lambda_b`, a permutation
    :math:`\pi`, and unit vectors :math:`r(E)` (encode, pool, LayerNorm, Linear, normalise),

    .. math::
        S = r(\lambda E + (1 - \lambda)\, \mathrm{sg}(E_\pi))\, r(E)^T / \tau, \qquad
        L = \frac{1}{B} \sum_b \lambda_b\, CE(S_b, b) + (1 - \lambda_b)\, CE(S_b, \pi_b) .

    :math:`\lambda_b = \max(l, 1 - l)` with :math:`l \sim Beta(\alpha, \alpha)`. In the published
    code a broadcast turns the mean of products into a product of means; ``weighting`` of
    ``as_published`` does that. Vectors are pooled as features are, without the class token.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        config: Settings.
    """

    def __init__(self, network: Backbone, width: int, config: EMixConfig) -> None:
        """See the class."""
        super().__init__(network)
        self.config = config
        self.head = nn.Sequential(nn.LayerNorm(width), xavier_linear(width, config.out))

    def draw(self, batch_size: int, generator: torch.Generator) -> Mixing:
        """Shares and partners.

        Raises:
            ConfigError: fewer than two examples.
        """
        if batch_size < 2:
            raise ConfigError(
                f"expected training.batch_size >= 2 for emix, which mixes examples, got "
                f"{batch_size}; use a larger batch or another method"
            )
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=generator)
        # The inverse of the distribution function: torch's Beta knows no generator.
        from scipy.special import betaincinv

        share = torch.from_numpy(betaincinv(self.config.alpha, self.config.alpha, uniform.numpy()))
        partner = torch.randperm(batch_size, generator=generator)
        return Mixing(torch.maximum(share, 1 - share).float(), partner)

    def forward(self, batch: Batch, draw: Mixing) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(draw))
        mixed, plain = self._views(batch, draw)
        return PretextLoss(mixing_loss(mixed, plain, draw, self.config), {})

    @property
    def is_joint(self) -> bool:
        """Wholly: every mixture is compared with every example."""
        return True

    def cut(self, draw: Mixing, rows: slice) -> tuple[Tensor, Mixing]:
        """The examples and, after them, their partners."""
        own = torch.arange(rows.start, rows.stop)
        partners = torch.arange(len(own), 2 * len(own))
        return torch.cat([own, draw.partner[rows]]), Mixing(draw.share[rows], partners)

    def parts(self, batch: Batch, draw: Mixing) -> Parts:
        """Representations of the mixtures and of the examples, and no loss of their own."""
        self.check(batch, 2 * len(draw))
        rows = self._views(batch, draw)
        return Parts(rows[0].new_zeros(()), {}, rows)

    def joint(self, rows: Sequence[Tensor], draw: Mixing) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss."""
        return mixing_loss(rows[0], rows[1], draw, self.config), {}

    def _views(self, batch: Batch, draw: Mixing) -> tuple[Tensor, Tensor]:
        """Representations of the mixtures, and of what the shares are of."""
        contents = self.network.tokenizer.contents(batch)
        own, share = contents[: len(draw)], draw.share.to(contents.dtype)[:, None, None]
        mixed = share * own + (1 - share) * contents[draw.partner].detach()
        return self._represent(mixed, batch), self._represent(own, batch)

    def _represent(self, contents: Tensor, batch: Batch) -> Tensor:
        latent = self.network.encoder(self.network.tokenizer.place(contents, batch))
        represented: Tensor = self.head(latent[:, 1:].mean(dim=1))
        return represented


def mixing_loss(mixed: Tensor, plain: Tensor, draw: Mixing, config: EMixConfig) -> Tensor:
    """Loss of representations ``(B, P)`` of mixtures and of the examples they were made of.

    Example:
        >>> import torch
        >>> from metamae.methods.baselines.emix import Mixing, mixing_loss
        >>> from metamae.config.baselines import EMixConfig
        >>> draw = Mixing(torch.tensor([0.5, 1.0]), torch.tensor([1, 0]))
        >>> mixing_loss(torch.eye(2), torch.eye(2), draw, EMixConfig(temperature=1.0))
        tensor(0.5633)
    """
    with without_autocast(mixed):
        mixed, plain = (F.normalize(at_least_float32(view), dim=1) for view in (mixed, plain))
        logits = mixed @ plain.T / config.temperature
    itself = torch.arange(len(logits), device=logits.device)
    own, other = (
        F.cross_entropy(logits, target, reduction="none") for target in (itself, draw.partner)
    )
    share = draw.share.to(logits.dtype)
    if config.weighting == "as_published":
        return share.mean() * own.mean() + (1 - share).mean() * other.mean()
    return (share * own + (1 - share) * other).mean()
