"""Learning from randomness: predict what frozen random networks make of an example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.randomness import fold
from metamae.config.baselines import LFRConfig
from metamae.inputs import Batch, Inputs, Tokens
from metamae.methods.method import Method, NoDraw, Parts, PretextLoss
from metamae.model.backbone import Backbone
from metamae.model.tokenizer import at_least_float32, without_autocast, xavier_linear

SYMBOL_WIDTH = 8
"""Random numbers that stand for a symbol."""
PROBES = 128
"""Drawn examples on which the diversity of random networks is judged."""


class RandomProjectors(nn.Module):
    r"""Frozen random networks of flat raw tokens :math:`x`, one hidden layer each.

    .. math:: g_k(x) = V_k \max(U_k x + a_k, 0), \qquad
        U_k, a_k \sim N(0, 1 / \dim x), \; V_k \sim N(0, 2 / \mathrm{hidden})

    A symbol is a row of a frozen random table. ``projectors`` of ``candidates`` networks are kept,
    chosen one after the other so that the determinant of the chosen ones' similarities grows most
    (:func:`most_diverse`). Two networks are as similar as the cosine similarities that they see
    between examples. A method is built before it sees data, so these are drawn: standard normal
    numbers, as inputs are standardised, and uniform symbols.

    Everything is a function of the seed, the sizes and the inputs. Nothing of it is in a
    checkpoint: it is drawn again, and an encoder can be loaded for inputs of other sizes.

    Args:
        inputs: Specifications of the inputs.
        config: Sizes and numbers.
        seed: Of all draws; the global state is left alone.

    Shape:
        ``forward(tokens)``, of tokens as :meth:`metamae.model.tokenizer.Tokenizer.targets` gives
        them, is ``(B, K, out)``.

    Example:
        >>> import torch
        >>> from metamae.config.baselines import LFRConfig
        >>> from metamae.inputs import Tabular
        >>> from metamae.methods.lfr import RandomProjectors
        >>> random = RandomProjectors((Tabular(name="row", columns=6),), LFRConfig(), seed=0)
        >>> random({"row": torch.zeros(2, 6, 1)}).shape, len(list(random.parameters()))
        (torch.Size([2, 6, 64]), 0)
    """

    first: Tensor
    bias: Tensor
    second: Tensor

    def __init__(self, inputs: Inputs, config: LFRConfig, seed: int) -> None:
        """See the class."""
        super().__init__()
        self.inputs = inputs
        for number, spec in enumerate(inputs):
            if isinstance(spec, Tokens):
                table = _normal(fold(seed, "symbols", number), spec.vocabulary, SYMBOL_WIDTH)
                self._freeze(f"table_{number}", table)
        # In float64, so that rounding never decides which are chosen.
        probes = self.flat(_probes(inputs, fold(seed, "probes"))).double()  # (P, F)
        size = probes.shape[1]
        similarities = []
        for number in range(config.candidates):
            drawn = _network(size, config, fold(seed, "projector", number))
            rows = F.normalize(_project(probes, *drawn), dim=-1)  # (P, out)
            similarities.append(F.normalize((rows @ rows.T).flatten(), dim=0))
        stacked = torch.stack(similarities)
        self.chosen = most_diverse(stacked @ stacked.T, config.projectors)
        networks = [_network(size, config, fold(seed, "projector", n)) for n in self.chosen]
        for name, parts in zip(
            ("first", "bias", "second"), zip(*networks, strict=True), strict=True
        ):
            self._freeze(name, torch.stack(parts))

    def _freeze(self, name: str, value: Tensor) -> None:
        # Drawn in float32 whatever the default, so that they do not depend on it.
        self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def flat(self, tokens: dict[str, Tensor]) -> Tensor:
        """All tokens of an example side by side, ``(B, F)``, symbols by their random rows."""
        parts = []
        for number, spec in enumerate(self.inputs):
            part = tokens[spec.name]
            if isinstance(spec, Tokens):
                part = F.embedding(part, self.get_buffer(f"table_{number}"))
            parts.append(part.flatten(1))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """What every network makes of every example."""
        x = self.flat(tokens).to(self.first.dtype)
        with without_autocast(x):
            hidden = torch.einsum("bf,kfh->bkh", x, self.first) + self.bias
            return torch.einsum("bkh,kho->bko", hidden.relu(), self.second)


def _normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _network(size: int, config: LFRConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of one network: ``(F, hidden)``, ``(hidden,)`` and ``(hidden, out)``."""
    hidden, out = config.hidden, config.out
    first, bias, second = _normal(seed, size + 1 + out, hidden).split((size, 1, out))
    return first / size**0.5, bias[0] / size**0.5, second.T * (2 / hidden) ** 0.5


def _project(x: Tensor, first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
    dtype = x.dtype
    return (x @ first.to(dtype) + bias.to(dtype)).relu() @ second.to(dtype)


def _probes(inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Drawn tokens of every input."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tokens = {}
    for spec in inputs:
        size = (PROBES, spec.tokens)
        if isinstance(spec, Tokens):
            tokens[spec.name] = torch.randint(
                spec.vocabulary, size, generator=generator, device="cpu"
            )
        else:
            tokens[spec.name] = torch.randn(
                (*size, spec.values), generator=generator, dtype=torch.float32, device="cpu"
            )
    return tokens


def most_diverse(kernel: Tensor, count: int) -> tuple[int, ...]:
    """Items chosen greedily so that the determinant of their part of a kernel grows most.

    The first is the one with the largest diagonal, the lowest number wins a tie. It is the greedy
    answer to the likeliest set of a determinantal point process.

    Args:
        kernel: Similarities ``(N, N)``, positive semi-definite.
        count: How many items.

    Example:
        >>> import torch
        >>> from metamae.methods.lfr import most_diverse
        >>> most_diverse(torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.1], [0.0, 0.1, 1.0]]), 2)
        (0, 2)
    """
    chosen: list[int] = []
    # What is left of every item's similarity to itself, and of the kernel, after the chosen.
    rest = kernel.double().clone()
    for _ in range(count):
        left = rest.diagonal().clone()
        left[chosen] = -torch.inf
        item = int(left.argmax())
        chosen.append(item)
        if rest[item, item] > 0:
            rest = rest - torch.outer(rest[:, item], rest[item]) / rest[item, item]
    return tuple(chosen)


class LFR(Method[NoDraw]):
    r"""Features from which the outputs of random networks can be told (LFR, Sui et al., ICLR 2024).

    With pooled features :math:`f(x)`, learned predictors :math:`h_k` of one hidden layer and frozen
    random networks :math:`g_k` (:class:`RandomProjectors`), over the batch,

    .. math::
        c^k_{ij} = \cos(h_k(f(x_i)),\; g_k(x_j)), \qquad
        L = \frac{1}{BK} \sum_k \Big[ \sum_i (1 - c^k_{ii})^2
            + \lambda \sum_i \sum_{j \neq i} (c^k_{ij})^2 \Big] .

    That is the paper's batch-wise Barlow Twins loss: the matrix compares examples with examples,
    not columns with columns, by cosines of uncentred rows (of a row of zeros, 0). The published
    code sums over the batch where this is a mean. There the encoder is trained for an epoch and
    then the predictors for several (alternately, as expectation and maximisation would); here both
    are trained in every step. There the random networks are chosen on data, here on drawn examples.

    Nothing is masked or augmented: the only randomness of a step is its order and dropout.

    Args:
        network: Tokenizer and encoder.
        width: Width of the encoder.
        config: Settings.
        seed: Of the random networks.
    """

    def __init__(self, network: Backbone, width: int, config: LFRConfig, *, seed: int) -> None:
        """See the class."""
        super().__init__(network)
        self.config = config
        self.projectors = RandomProjectors(network.inputs, config, seed)
        self.predictors = nn.ModuleList(
            nn.Sequential(
                xavier_linear(width, config.hidden),
                nn.ReLU(),
                xavier_linear(config.hidden, config.out),
            )
            for _ in range(config.projectors)
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> NoDraw:
        """Nothing is random."""
        return NoDraw(batch_size)

    def forward(self, batch: Batch, draw: NoDraw) -> PretextLoss:
        """Loss of a batch."""
        loss, terms = self.joint(self.parts(batch, draw).rows, draw)
        return PretextLoss(loss, terms)

    @property
    def is_joint(self) -> bool:
        """Wholly: every prediction is compared with the targets of all examples."""
        return True

    def parts(self, batch: Batch, draw: NoDraw) -> Parts:
        """Predictions and targets ``(b, K, out)``, and no loss of their own."""
        self.check(batch, len(draw))
        features = self.features(batch)
        predictions = torch.stack([predict(features) for predict in self.predictors], dim=1)
        targets = self.projectors(self.network.tokenizer.targets(batch))
        return Parts(predictions.new_zeros(()), {}, (predictions, targets))

    def joint(self, rows: Sequence[Tensor], draw: NoDraw) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its two sums as means over examples and networks, unweighted."""
        own, others = matching_losses(rows[0], rows[1])
        terms = {"mismatch": own.detach(), "redundancy": others.detach()}
        return own + self.config.redundancy * others, terms


def matching_losses(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How far predictions are from their own targets, and how near to the others'.

    Of rows ``(B, K, P)``: the sums over examples of ``(1 - c_ii)^2`` and of ``c_ij^2``, divided by
    ``B K``, in float32 at least.

    Example:
        >>> import torch
        >>> from metamae.methods.lfr import matching_losses
        >>> rows = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
        >>> matching_losses(rows, rows)  # cosines of 1, and of 0.6
        (tensor(0.), tensor(0.3600))
    """
    with without_autocast(predictions):
        first, second = (
            F.normalize(at_least_float32(rows), dim=-1) for rows in (predictions, targets)
        )
        cosines = torch.einsum("ikp,jkp->kij", first, second)  # (K, B, B)
    own = cosines.diagonal(dim1=1, dim2=2)  # (K, B)
    others = cosines.square().sum() - own.square().sum()
    return (1 - own).square().mean(), others / own.numel()
