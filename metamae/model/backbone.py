"""The part of a network that all methods share, and that is kept: tokenizer and encoder."""

from __future__ import annotations

from torch import Tensor, nn

from metamae.config.sections import EncoderConfig
from metamae.inputs import Batch, Inputs
from metamae.model.tokenizer import Tokenizer
from metamae.model.transformer import TransformerEncoder


class Backbone(nn.Module):
    """Tokenizer and encoder, and the features of unmasked examples (paper, section 3.1).

    It is built before anything else of a method: methods that share a seed share its initial
    weights, so a comparison of methods is one of objectives.

    Args:
        inputs: Specifications of the inputs.
        encoder: Encoder configuration.

    Shape:
        ``features`` is ``(B, D)`` and ``token_features`` ``(B, L, D)``.

    Example:
        >>> import torch
        >>> from metamae.model.backbone import Backbone
        >>> from metamae.config.sections import EncoderConfig
        >>> from metamae.inputs import Tabular
        >>> row = Tabular(name="row", columns=6)
        >>> backbone = Backbone((row,), EncoderConfig(width=16, depth=1, heads=2))
        >>> backbone.features({"row": torch.zeros(2, 6)}).shape
        torch.Size([2, 16])
    """

    def __init__(self, inputs: Inputs, encoder: EncoderConfig) -> None:
        """See the class."""
        super().__init__()
        self.inputs = inputs
        self.tokenizer = Tokenizer(inputs, encoder.width, encoder.content_scale)
        self.encoder = TransformerEncoder(encoder)

    def bare(self) -> Backbone:
        """Tokenizer and encoder alone, the same weights, without what a subclass adds."""
        backbone = Backbone.__new__(Backbone)
        nn.Module.__init__(backbone)
        backbone.inputs, backbone.tokenizer, backbone.encoder = (
            self.inputs,
            self.tokenizer,
            self.encoder,
        )
        return backbone.train(self.training)

    def token_features(self, batch: Batch) -> Tensor:
        """Final token states of unmasked examples, without the class token."""
        latent: Tensor = self.encoder(self.tokenizer(batch))
        return latent[:, 1:]

    def features(self, batch: Batch) -> Tensor:
        """Mean of :meth:`token_features`: what the probe sees."""
        return self.token_features(batch).mean(dim=1)
