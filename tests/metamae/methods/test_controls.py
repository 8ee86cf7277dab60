"""The controls beside MetaMAE, U-MAE and a contrast of two masks, from their defining equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metamae.config.schema import Config
from metamae.errors import ConfigError
from metamae.inputs import Inputs
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.mae_contrast import ContrastiveMAE, PairedSplit
from metamae.methods.umae import UMAE
from tests.metamae.methods.test_metamae import (
    IMAGE,
    SIGNAL,
    WORDS,
    batch_of,
    config_of,
    draw,
    perturb,
)


def built(method: str, inputs: Inputs = (SIGNAL,), **settings: Any) -> MAE:
    """A float64 method with perturbed weights."""
    config: Config = config_of(method, **settings)
    made = build_method(config, inputs).double()
    assert isinstance(made, MAE)
    perturb(made)
    return made


def mean_square_cosine(rows: Tensor) -> Tensor:
    """Of all ordered pairs of different rows, one after the other."""
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    cosines = [torch.dot(rows[i], rows[j]) / (rows[i].norm() * rows[j].norm()) for i, j in pairs]
    return torch.stack([c**2 for c in cosines]).mean()


def test_umae_needs_two_examples_where_it_compares_them() -> None:
    config = config_of("umae")
    single = replace(config, training=replace(config.training, batch_size=1))
    with pytest.raises(ConfigError, match=r"batch_size >= 2 for umae.*got 1"):
        build_method(single, (SIGNAL,))
    unweighted = replace(single, baseline=replace(config.baseline, uniformity=0.0))
    assert isinstance(build_method(unweighted, (SIGNAL,)), UMAE)


@pytest.mark.parametrize("inputs", [(SIGNAL,), (IMAGE, WORDS)])
def test_umae_is_mae_and_the_uniformity_of_pooled_latents(inputs: Inputs) -> None:
    umae, batch = built("umae", inputs), batch_of(inputs)
    assert isinstance(umae, UMAE)
    assert umae.weight == 0.01  # as published
    split, mae = draw(umae), built("mae", inputs)
    result, plain = umae(batch, split), mae(batch, split)
    latent, _ = mae.latents(batch, split)
    expected = mean_square_cosine(latent[:, 1:].mean(1))
    torch.testing.assert_close(result.loss, plain.loss + 0.01 * expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.terms["uniformity"], expected, rtol=1e-12, atol=0)
    result.loss.backward()  # the term reaches the encoder alone
    plain.loss.backward()
    for (name, a), (_, b) in zip(umae.named_parameters(), mae.named_parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        same = torch.equal(a.grad, b.grad)
        assert same is name.startswith(("network.decoder", "network.heads")), name


def test_two_masks_are_decoded_alike_and_aligned() -> None:
    method, batch = built("mae_contrast", weight=0.3), batch_of()
    assert isinstance(method, ContrastiveMAE)
    split = method.draw(4, torch.Generator().manual_seed(0))
    assert not torch.equal(split.support_idx, split.second.support_idx)
    result, mae = method(batch, split), built("mae")
    queries = [mae(batch, view).loss for view in (split, split.second)]
    pooled = [mae.latents(batch, view)[0][:, 1:].mean(1) for view in (split, split.second)]
    assert method.contrast is not None
    rows = torch.cat([method.contrast.projector(p) for p in pooled])
    rows = rows / rows.norm(dim=1, keepdim=True)
    logits = (rows @ rows.T / 0.5).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
    positive = torch.arange(8).roll(4)
    contrast = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(8), positive].mean()
    expected = (queries[0] + queries[1]) / 2 + 0.3 * contrast
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)


def test_a_pair_of_splits_reads_as_its_first_and_moves_whole() -> None:
    method = built("mae_contrast")
    split = method.draw(4, torch.Generator().manual_seed(0))
    assert isinstance(split, PairedSplit)
    part, moved = split[1:3], split.to("cpu")
    for pair, rows in ((part, slice(1, 3)), (moved, slice(None))):
        assert isinstance(pair, PairedSplit)
        for one, whole in ((pair, split), (pair.second, split.second)):
            assert torch.equal(one.query_idx, whole.query_idx[rows])
            assert torch.equal(one.nearby, whole.nearby[rows])
    assert method.latents(batch_of(), split)[0].shape == (4, 1 + split.support_idx.shape[1], 16)


def test_without_a_contrast_two_masks_are_twice_an_mae() -> None:
    method = built("mae_contrast", weight=0)
    split = method.draw(4, torch.Generator().manual_seed(0))
    result = method(batch_of(), split)
    assert list(result.terms) == ["query"]
    config = config_of("umae")
    config = replace(config, decoder=replace(config.decoder, depth=0))
    with pytest.raises(ConfigError, match=r"decoder.depth >= 1 for umae without a contrast"):
        build_method(config, (SIGNAL,))
