"""ShED: detect which embeddings were moved to another place (DABS, Tamkin et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.inputs import Batch
from metamae.methods.baselines.corruption import Corrupter, Corruption
from metamae.methods.method import Method, PretextLoss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, xavier_linear


class ShED(Method[Corruption]):
    r"""Shuffled embedding detection.

    A share of the contents is drawn in random order and each is moved to the place of the next
    one, cyclically, before positions are added: no drawn token stays where it was. A linear map
    then says of every token whether it was moved,

    .. math:: L = \frac{1}{BL} \sum_{b,l} CE(W h_{bl},\; [l \text{ was drawn}]) .

    Tokens move within their own input. At least two are drawn: one alone would be called moved
    without having anywhere to go.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        rate: Share of moved tokens.

    Raises:
        ConfigError: an input of one token.
    """

    mean_of_examples = True

    def __init__(self, network: Backbone, width: int, rate: float) -> None:
        """See the class."""
        super().__init__(network)
        self.corrupter = Corrupter(network.inputs, rate, least=2)
        self.head = xavier_linear(width, 2)

    def draw(self, batch_size: int, generator: torch.Generator) -> Corruption:
        """Moved tokens, in the order in which they follow each other."""
        return self.corrupter.draw(batch_size, generator)

    def forward(self, batch: Batch, draw: Corruption) -> PretextLoss:
        """Loss of a batch."""
        self.check(batch, len(draw))
        tokenizer = self.network.tokenizer
        contents = shifted(tokenizer.contents(batch), draw, self.corrupter.counts)
        latent = self.network.encoder(tokenizer.place(contents, batch))
        logits = at_least_float32(self.head(latent[:, 1:]))
        moved = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        moved = moved.scatter(1, draw.index, 1)
        return PretextLoss(F.cross_entropy(logits.transpose(1, 2), moved), {})


def shifted(contents: Tensor, corruption: Corruption, counts: tuple[int, ...]) -> Tensor:
    """Contents ``(B, L, D)`` whose drawn tokens each stand where the next drawn one stood.

    Args:
        contents: What is moved.
        corruption: The drawn tokens, in order, input after input.
        counts: How many of them belong to each input.

    Example:
        >>> import torch
        >>> from metamae.methods.baselines.corruption import Corruption
        >>> from metamae.methods.baselines.shed import shifted
        >>> contents = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> shifted(contents, Corruption(torch.tensor([[3, 0, 1]])), (3,)).flatten()
        tensor([3., 0., 2., 1.])
    """
    places = [share.roll(-1, dims=1) for share in corruption.index.split(counts, dim=1)]
    source, target = (
        index.unsqueeze(-1).expand(-1, -1, contents.shape[-1])
        for index in (corruption.index, torch.cat(places, dim=1))
    )
    return contents.scatter(1, target, contents.gather(1, source))
