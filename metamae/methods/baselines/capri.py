"""Capri: contrast the prediction of every token with the tokens of its example (DABS 2.0)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.config.baselines import CapriConfig
from metamae.inputs import Batch
from metamae.methods.baselines.corruption import Corrupter, Corruption, zeroed
from metamae.methods.method import Method, PretextLoss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, select, without_autocast, xavier_linear


class Capri(Method[Corruption]):
    r"""Contrastive prediction of embeddings.

    Drawn contents are set to zero before positions are added. With predictions
    :math:`p = W h` of the encoder's outputs and the uncorrupted contents :math:`e` (without
    positions, and with gradients), within each example,

    .. math:: S_{ij} = p_i^T e_j / \tau, \qquad L = \mathrm{mean}_{b,i}\, CE(S_i, i) .

    The published code sums over all positions, its description over masked ones: ``positions``.
    ``symmetric`` also asks which prediction belongs to each content (in the published code this
    option transposes the batch as well); ``normalise`` scores by cosines. Both are off there.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        rate: Share of zeroed tokens.
        config: Settings.

    Raises:
        ConfigError: fewer than two tokens to choose from.
    """

    mean_of_examples = True

    def __init__(self, network: Backbone, width: int, rate: float, config: CapriConfig) -> None:
        """See the class."""
        super().__init__(network)
        # A choice needs two tokens in an example, whatever its inputs.
        alone = config.positions == "masked" and len(network.inputs) == 1
        self.corrupter = Corrupter(network.inputs, rate, least=2 if alone else 1)
        self.config = config
        self.head = xavier_linear(width, width)

    def draw(self, batch_size: int, generator: torch.Generator) -> Corruption:
        """Zeroed tokens."""
        return self.corrupter.draw(batch_size, generator)

    def forward(self, batch: Batch, draw: Corruption) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(draw))
        tokenizer = self.network.tokenizer
        contents = tokenizer.contents(batch)
        latent = self.network.encoder(tokenizer.place(zeroed(contents, draw), batch))
        predictions = self.head(latent[:, 1:])
        if self.config.positions == "masked":
            predictions, contents = (select(x, draw.index) for x in (predictions, contents))
        return PretextLoss(matching_loss(predictions, contents, self.config), {})


def matching_loss(predictions: Tensor, contents: Tensor, config: CapriConfig) -> Tensor:
    """Loss of predictions and contents, both ``(B, N, D)``: which content is predicted where.

    Example:
        >>> import torch
        >>> from metamae.methods.baselines.capri import matching_loss
        >>> from metamae.config.baselines import CapriConfig
        >>> x = torch.eye(2).unsqueeze(0)
        >>> matching_loss(x, x, CapriConfig(temperature=1.0))
        tensor(0.3133)
    """
    with without_autocast(predictions):
        rows, columns = at_least_float32(predictions), at_least_float32(contents)
        if config.normalise:
            rows, columns = F.normalize(rows, dim=-1), F.normalize(columns, dim=-1)
        logits = rows @ columns.transpose(1, 2) / config.temperature
    target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    # The choice runs over axis 1 of what cross_entropy is given.
    loss = F.cross_entropy(logits.transpose(1, 2), target)
    if config.symmetric:
        loss = (loss + F.cross_entropy(logits, target)) / 2
    return loss
