"""Pre-norm transformer: the encoder of visible tokens and the blocks that the decoder shares."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import plain_attention, recomputed, recomputed_attention, recomputed_gelu
from metamae.config.sections import EncoderConfig
from metamae.model.dropout import Dropout
from metamae.model.tokenizer import select, xavier_linear


class Attention(nn.Module):
    """Multi-head self-attention ``(B, T, D)`` to ``(B, T, D)``.

    Torch's fused kernel is fast, keeps no scores and has no second derivative. Where one will be
    taken, as of the loss that :class:`metalearn.LatentAdapter` descends, a call says
    ``second_order``: it uses :func:`metalearn.plain_attention`, the same function, differentiable
    any number of times, or :func:`metalearn.recomputed_attention` where the maps are large.
    ``fused=False`` uses the plain one always.
    """

    def __init__(self, width: int, heads: int, *, fused: bool = True) -> None:
        """See the class."""
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width divisible by the heads, got {width} and {heads}")
        self.heads, self.fused = heads, fused
        self.qkv = xavier_linear(width, 3 * width, bias=False)
        self.out = xavier_linear(width, width)

    def forward(
        self, x: Tensor, query: Tensor | None = None, *, second_order: bool = False
    ) -> Tensor:
        """Attend from ``query`` (B, N, D), or from all of ``x``, to all of ``x``."""
        if query is None:
            return self.mix(*self.qkv(x).chunk(3, dim=-1), second_order=second_order)
        width = x.shape[-1]
        queries = F.linear(query, self.qkv.weight[:width])
        projected = F.linear(x, self.qkv.weight[width:])
        return self.mix(queries, *projected.chunk(2, dim=-1), second_order=second_order)

    def mix(self, *projected: Tensor, second_order: bool = False) -> Tensor:
        """Attend with projected queries ``(B, N, D)``, keys and values ``(B, T, D)``."""
        query, key, value = (rearrange(p, "b t (h d) -> b h t d", h=self.heads) for p in projected)
        if not self.fused:
            attend = plain_attention
        elif second_order:
            attend = _attention_by_size
        else:
            attend = _fused_attention
        mixed = attend(query, key, value)
        attended: Tensor = self.out(rearrange(mixed, "b h t d -> b t (h d)"))
        return attended


RECOMPUTED_FROM = 2**19
"""Elements of all maps of an attention from which they are computed again rather than kept."""


def _attention_by_size(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with a second derivative; large maps are not kept."""
    large = query.shape[:-1].numel() * key.shape[-2] >= RECOMPUTED_FROM
    return (recomputed_attention if large else plain_attention)(query, key, value)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.device.type != "cpu" or query.dtype.itemsize >= 4:
        return F.scaled_dot_product_attention(query, key, value)
    # In bfloat16 the CPU kernel's backward pass takes five times as long as in float32.
    with torch.autocast("cpu", enabled=False):
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return wide.to(query.dtype)


class _GELU(nn.GELU):
    """GELU whose result an exact inner step need not keep."""

    def forward(self, input: Tensor) -> Tensor:
        return recomputed_gelu(input)


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm, whose result an exact inner step need not keep."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    return recomputed(function, x, norm.weight, norm.bias)


class Block(nn.Module):
    """Pre-norm block: attention, then a GELU perceptron, each with a residual connection.

    Dropout acts after the attention's output, after the GELU and after the second linear layer.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, dropout: float = 0.0) -> None:
        """See the class."""
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            xavier_linear(width, hidden),
            _GELU(),
            Dropout(dropout),
            xavier_linear(hidden, width),
        )
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rows: Tensor | slice | None = None,
        projected: tuple[Tensor, Tensor, Tensor] | None = None,
        *,
        second_order: bool = False,
    ) -> Tensor:
        """One block, ``(B, T, D)`` to ``(B, T, D)``.

        With ``rows``, a slice or indices ``(B, N)``, only these tokens are computed, ``(B, N, D)``;
        they attend to all. The last block of a decoder needs no more than is read from it.
        ``projected`` are the query, key and value of every token where they are known already;
        ``second_order`` is explained at :class:`Attention`.
        """
        if projected is not None:
            query, key, value = projected
            queries = query if rows is None else select(query, rows)
            attended = self.attention.mix(queries, key, value, second_order=second_order)
        else:
            normed = _normed(self.attention_norm, x)
            from_these = None if rows is None else select(normed, rows)
            attended = self.attention(normed, from_these, second_order=second_order)
        x = (x if rows is None else select(x, rows)) + self.dropout(attended)
        x = x + self.dropout(self.mlp(_normed(self.mlp_norm, x)))
        return x

    def project(self, x: Tensor) -> Tensor:
        """Query, key and value of tokens ``(..., D)``, side by side: ``(..., 3 D)``."""
        projected: Tensor = self.attention.qkv(_normed(self.attention_norm, x))
        return projected


class CrossBlock(Block):
    """Pre-norm block whose tokens attend to a memory, and not to each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        """See the class."""
        super().__init__(width, heads, mlp_ratio)
        self.memory_norm = nn.LayerNorm(width)

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: Tensor, *, second_order: bool = False
    ) -> Tensor:
        """One block: ``x`` (B, N, D) reads from ``memory`` (B, M, D)."""
        queries = _normed(self.attention_norm, x)
        memory = _normed(self.memory_norm, memory)
        attended = self.attention(memory, queries, second_order=second_order)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.mlp(_normed(self.mlp_norm, x)))
        return x


class TransformerEncoder(nn.Module):
    """Encodes visible tokens ``(B, S, D)`` to a latent ``(B, 1 + S, D)``; the class token is first.

    A :class:`metalearn.SupportEncoder`: the latent is the amortised task knowledge of section 2.1.
    The class token has no position, and takes part in refinement but not in pooled features.

    Example:
        >>> import torch
        >>> from metamae.config.sections import EncoderConfig
        >>> from metamae.model.transformer import TransformerEncoder
        >>> encoder = TransformerEncoder(EncoderConfig(width=16, depth=1, heads=2))
        >>> encoder(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 6, 16])
    """

    def __init__(self, config: EncoderConfig) -> None:
        """See the class."""
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        nn.init.normal_(self.class_token, std=0.02)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.Sequential(
            *(
                Block(
                    config.width,
                    config.heads,
                    config.mlp_ratio,
                    dropout=config.dropout,
                )
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, support: Tensor) -> Tensor:
        """Encode positioned tokens."""
        return self._encode(support)

    def states(self, support: Tensor) -> list[Tensor]:
        """What the first block reads, and every block's output; the last is the latent."""
        states: list[Tensor] = []
        latent = self._encode(support, states)
        return [*states[:-1], latent]

    def _encode(self, support: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """The latent; what precedes its norm, block by block, is added to ``states``."""
        token = self.class_token.to(support.dtype)
        class_token = token.expand(support.shape[0], -1, -1)  # (B, 1, D)
        x = self.dropout(torch.cat([class_token, support], dim=1))  # (B, 1 + S, D)
        # C++ takes seconds to compile a kernel: there all blocks share one compiled region.
        compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        shared = x.device.type == "cpu" and compiled
        for block in self.blocks:
            if states is not None:
                states.append(x)
            x = _shared_region(block, x) if shared else block(x)
        if states is not None:
            states.append(x)
        latent: Tensor = self.norm(x)
        return latent


@torch.compiler.nested_compile_region
def _shared_region(block: nn.Module, x: Tensor) -> Tensor:
    encoded: Tensor = block(x)
    return encoded
