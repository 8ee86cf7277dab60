"""The network: tokens, masks, transformer, decoder, and the masked autoencoder they make.

One file per stage: :mod:`~metamae.model.tokenizer` (sample to tokens),
:mod:`~metamae.model.masking` (support/query split), :mod:`~metamae.model.transformer` (latent),
:mod:`~metamae.model.decoder`, :mod:`~metamae.model.autoencoder` (predictions and losses),
:mod:`~metamae.model.backbone` (what is kept after pretraining).
"""

from metamae.model.autoencoder import MaskedAutoencoder
from metamae.model.backbone import Backbone
from metamae.model.masking import Masking, Split, neighbour_table, visible_count
from metamae.model.tokenizer import Tokenizer
from metamae.model.transformer import TransformerEncoder

__all__ = [
    "Backbone",
    "MaskedAutoencoder",
    "Masking",
    "Split",
    "Tokenizer",
    "TransformerEncoder",
    "neighbour_table",
    "visible_count",
]
