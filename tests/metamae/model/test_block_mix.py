"""CrossMAE's mix of encoder blocks: against its equation, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metamae import load_dataset, make_config
from metamae.config import Config
from metamae.errors import ConfigError
from metamae.evaluation.inner_gradients import gradient_features
from metamae.inputs import Image, Inputs, Tabular
from metamae.methods import MAE, MetaMAE, build_adapter, build_method
from metamae.model.block_mix import BlockMix
from metamae.training import pretrain
from metamae.training.compiling import CompiledLoss
from metamae.training.run import Run
from tests.tiny import SIZES

TWO: Inputs = (
    Image(name="image", channels=1, height=6, width=8, patch=(2, 2)),
    Tabular(name="row", columns=7),
)
CROSS = ("decoder.attention=cross", "encoder.depth=2", "decoder.depth=3", "decoder.width=8")


def config_of(method: str, *overrides: str, mixed: bool = True) -> Config:
    own = (*CROSS, f"decoder.mix_blocks={str(mixed).lower()}", "training.batch_size=6")
    return make_config("basic_motions", method=method, overrides=[*SIZES, *own, *overrides])


def built(method: str = "mae", *overrides: str, mixed: bool = True) -> MAE:
    made = build_method(config_of(method, *overrides, mixed=mixed), TWO)
    assert isinstance(made, MAE)
    return made


def mix_of(method: MAE) -> BlockMix:
    mix = method.network.decoder.mix
    assert isinstance(mix, BlockMix)
    return mix


def batch_of(size: int = 6) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(5)
    return {
        "image": torch.randn(size, 1, 6, 8, generator=random),
        "row": torch.randn(size, 7, generator=random),
    }


def layer_norm(rows: np.ndarray, norm: Any) -> np.ndarray:
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def test_every_decoder_block_reads_its_own_mix() -> None:
    """Of states that hooks see, mixed in loops, block by block."""
    method, batch = built(), batch_of()
    network: Any = method.network
    mix, split = mix_of(method), method.draw(6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in [*mix.norms.parameters(), *network.encoder.norm.parameters()]:
            weight.add_(0.3 * torch.randn_like(weight))
    seen: list[np.ndarray] = []

    def look(_module: Any, inputs: Any, output: Any) -> None:
        seen.extend([inputs[0].detach().numpy()] if not seen else [])
        seen.append(output.detach().numpy())

    handles = [block.register_forward_hook(look) for block in network.encoder.blocks]
    latent = network.encode(network.visible_tokens(batch, split))
    for handle in handles:
        handle.remove()
    seen[-1] = layer_norm(seen[-1], network.encoder.norm)
    assert latent.shape == (6, 1 + 9, 3 * 16)
    assert np.allclose(network.output_of(latent).detach(), seen[-1], atol=1e-5)
    decoder, weights = network.decoder, mix.weight.tolist()
    assert np.shape(weights) == (3, 3)
    places = decoder.places(torch.float32)
    hidden = decoder.mask_token + places[split.query_idx]
    for number, block in enumerate(decoder.blocks):
        mixed = sum(weights[number][k] * seen[k] for k in range(3))
        memory = decoder.embed(torch.from_numpy(layer_norm(mixed, mix.norms[number])).float())
        visible = memory[:, 1:] + places[split.support_idx]
        hidden = block(hidden, torch.cat([memory[:, :1], visible], 1))
    found = decoder(latent, split, slice(10, None))
    torch.testing.assert_close(found, decoder.norm(hidden), rtol=1e-4, atol=1e-5)


def test_a_mix_of_the_last_block_alone_is_the_plain_decoder() -> None:
    method, plain = built(), built(mixed=False)
    with torch.no_grad():
        mix_of(method).weight.copy_(torch.tensor([0.0, 0.0, 1.0]))
    split = method.draw(6, torch.Generator().manual_seed(0))
    expected = plain(batch_of(), split).loss
    torch.testing.assert_close(method(batch_of(), split).loss, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["mae", "umae", "mae_contrast"])
def test_it_changes_no_other_initial_weight_and_no_feature(name: str) -> None:
    mixed, plain = built(name), built(name, mixed=False)
    states = plain.state_dict()
    own = {f"network.decoder.mix.{key}" for key in mix_of(mixed).state_dict()}
    assert mixed.state_dict().keys() - states.keys() == own
    for key, value in states.items():
        assert torch.equal(mixed.state_dict()[key], value), key
    assert torch.equal(mixed.features(batch_of()), plain.features(batch_of()))


def test_its_weights_are_of_the_published_size() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        weight = BlockMix(states=25, blocks=400, width=4).weight
        assert torch.equal(torch.get_rng_state(), before)
    assert weight.std().item() == pytest.approx(0.2, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mae", ()),
        ("mae", ("target.kind=teacher", "decoder.query_fraction=0.5")),
        ("umae", ("masking.rule=hard", "masking.ratio_range=[0.3,0.7]")),
        ("mae_contrast", ("target.kind=teacher",)),
        ("mae_contrast", ("contrast.view=quantization",)),
    ],
)
def test_every_weight_learns_and_the_output_is_compared(
    name: str, overrides: tuple[str, ...]
) -> None:
    method, batch = built(name, *overrides), batch_of()
    split = method.draw_at(6, torch.Generator().manual_seed(0), 1.0)
    split = method.complete(batch, split)
    method(batch, split).loss.backward()
    for key, weight in method.named_parameters():
        assert not weight.requires_grad or weight.grad is not None, key
    gradient = mix_of(method).weight.grad
    assert gradient is not None
    assert (gradient != 0).all()
    if rows := method.parts(batch, split).rows:
        output = method.network.encoder(method.network.visible_tokens(batch, split))
        torch.testing.assert_close(rows[0], output[:, 1:].mean(1))


def test_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    config = config_of("mae", "training.steps=3")
    done = pretrain(config, data, tmp_path / "whole").method.state_dict()
    (tmp_path / "resumed").mkdir()
    run = Run(config, data, tmp_path / "resumed", torch.device("cpu"))
    steps = run.train()
    next(steps), next(steps)
    run.save()
    again = pretrain(config, data, tmp_path / "resumed", resume=True).method.state_dict()
    for key, value in done.items():
        assert torch.equal(again[key], value), key
    first = build_method(config, data.inputs).state_dict()["network.decoder.mix.weight"]
    assert not torch.equal(done["network.decoder.mix.weight"], first)


@pytest.mark.slow
def test_it_can_be_compiled() -> None:
    method, batch = built("mae_contrast"), batch_of()
    split = method.draw(6, torch.Generator().manual_seed(0))
    compiled = CompiledLoss(method, 6, torch.device("cpu"), backend="aot_eager")
    compiled.prepare(batch, split)
    assert compiled.failure == ""


def test_what_does_not_go_together_is_refused_by_name() -> None:
    methods = "a method among mae, umae, mae_contrast, random, got 'true with"
    for method, overrides, text in (
        ("metamae", [], f"decoder.mix_blocks=false, or {methods} metamae'"),
        ("emix", [], f"{methods} emix'"),
        ("mae", ["decoder.attention=self"], "decoder.attention=cross where"),
        ("mae", ["decoder.depth=0"], "decoder.depth >= 1 where decoder.mix_blocks=true"),
        ("mae", ["encoder.depth=0"], "encoder.depth >= 1 where decoder.mix_blocks=true"),
    ):
        with pytest.raises(ConfigError) as fault:
            config_of(method, *overrides)
        assert text in str(fault.value)
    mae = built()
    adapter = build_adapter(config_of("mae").adaptation, 16)
    with pytest.raises(ConfigError, match="mix_blocks=false for MetaMAE, whose refined latent"):
        MetaMAE(mae.network, adapter, None)
    data = load_dataset("basic_motions")
    method = build_method(config_of("mae"), data.inputs)
    with pytest.raises(ConfigError, match="mix_blocks=false for gradients in a latent"):
        gradient_features(method, data.need("test"))
