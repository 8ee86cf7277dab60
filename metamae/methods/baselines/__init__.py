"""The baselines of DABS, and a supervised upper bound: one encoder, one probe, other objectives.

What DABS's code got wrong is put right by default; a setting named for it brings the published
behaviour back (:class:`metamae.config.BaselineConfig`). Encoder, positions, normalisation and
pooling are those of MetaMAE for all methods.
"""

from metamae.methods.baselines.capri import Capri
from metamae.methods.baselines.emix import EMix
from metamae.methods.baselines.mae_linear import LinearMAE
from metamae.methods.baselines.shed import ShED
from metamae.methods.baselines.supervised import Supervised

__all__ = ["Capri", "EMix", "LinearMAE", "ShED", "Supervised"]
