"""Contents as large as positions, targets of one scale, and a ratio drawn for every batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.config.sections import AdaptationConfig, MaskingConfig, TrainingConfig
from metamae.errors import ConfigError
from metamae.inputs import Image, Inputs, InputSpec, Signal, Tabular, Tokens
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.reconstruction import reconstruct
from metamae.model.masking import Masking
from metamae.model.tokenizer import Tokenizer
from metamae.training.pretraining import pretrain
from tests.metamae.methods.test_metamae import IMAGE, SIGNAL, WORDS, batch_of, config_of, perturb
from tests.tiny import SIZES

SPECS: list[InputSpec] = [
    Tabular(name="x", columns=12),
    Signal(name="x", channels=6, length=64, token_length=4),
    Image(name="x", channels=1, height=8, width=8, patch=(2, 2)),
    Tokens(name="x", length=40, vocabulary=4),
    Tokens(name="x", length=40, vocabulary=300),
]


def sample(spec: InputSpec, rows: int = 64) -> Tensor:
    """Standardised values, or symbols."""
    random = torch.Generator().manual_seed(0)
    if isinstance(spec, Tokens):
        return torch.randint(spec.vocabulary, (rows, spec.length), generator=random)
    shape = {Tabular: (12,), Signal: (6, 64), Image: (1, 8, 8)}[type(spec)]
    return torch.randn(rows, *shape, generator=random)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{type(s).__name__} {s.values}")
def test_contents_have_the_norm_of_positions(spec: InputSpec) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer((spec,), 128, "positions")
    batch = {"x": sample(spec)}
    contents = tokenizer.contents(batch)
    assert contents.square().sum(-1).mean().sqrt().item() == pytest.approx(8.0, rel=0.12)
    torch.manual_seed(0)
    plain = Tokenizer((spec,), 128)
    torch.testing.assert_close(contents, tokenizer.factors[0] * plain.contents(batch))
    assert plain.factors == [1.0]


def method_of(inputs: Inputs, config: Config) -> MAE:
    """A float64 MAE with perturbed weights."""
    method = build_method(config, inputs).double()
    assert isinstance(method, MAE)
    perturb(method)
    return method


def test_targets_are_standardised_token_by_token() -> None:
    """Loss by hand from the predictions; symbols are left as they are."""
    config = config_of("mae")
    config = replace(config, decoder=replace(config.decoder, normalise_targets=True))
    inputs = (IMAGE, WORDS)
    method, batch = method_of(inputs, config), batch_of(inputs)
    split = method.draw(4, torch.Generator().manual_seed(0))
    latent, _ = method.latents(batch, split)
    network = method.network
    targets = network.tokenizer.targets(batch)
    of_image, of_words = split.query_idx.split(network.masking.query_counts, 1)
    predicted = network.predict(latent, split)
    losses = []
    for b in range(4):
        per_token = []
        for place, token in enumerate(of_image[b]):
            x = targets["image"][b, token]
            x = (x - x.mean()) / (x.var() + 1e-6).sqrt()
            per_token.append((predicted["image"][1][b, place] - x).square().mean())
        logits = predicted["words"][1][b].log_softmax(-1)
        right = targets["words"][b, of_words[b] - IMAGE.tokens]
        words = -logits[torch.arange(len(right)), right].mean()
        losses.append((torch.stack(per_token).mean() + words) / 2)
    torch.testing.assert_close(method(batch, split).loss, torch.stack(losses).mean())
    # A picture of it is in the units of the data again.
    shown = reconstruct(method, latent, targets, split)["image"]
    token = of_image[0, 0]
    x = targets["image"][0, token]
    expected = predicted["image"][1][0, 0] * (x.var() + 1e-6).sqrt() + x.mean()
    torch.testing.assert_close(shown[0, token], expected)


def test_columns_of_a_table_are_not_standardised_row_by_row() -> None:
    row, batch = (Tabular(name="row", columns=8),), batch_of((Tabular(name="row", columns=8),))
    config = config_of("mae")
    normalised = replace(config, decoder=replace(config.decoder, normalise_targets=True))
    losses = []
    for one in (config, normalised):
        method = method_of(row, one)
        losses.append(method(batch, method.draw(4, torch.Generator().manual_seed(0))).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["mae", "umae", "mae_contrast", "metamae"])
def test_a_drawn_ratio_gives_the_loss_of_that_ratio(name: str) -> None:
    inputs = (SIGNAL, WORDS)
    config, batch = config_of(name), batch_of(inputs)
    ranged = replace(config, masking=MaskingConfig(nearby_ratio=0.3, ratio_range=(0.2, 0.8)))
    method, seen = method_of(inputs, ranged), set()
    for seed in range(12):
        split = method.draw(4, torch.Generator().manual_seed(seed))
        visible, masked, _ = method.network.masking.counts_of(split)
        seen.add(visible)
        assert [a + b for a, b in zip(visible, masked, strict=True)] == [8, 7]
        ratio = 0.2 + 0.6 * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
        assert visible == Masking(inputs, ratio).support_counts
        if name != "mae_contrast":  # whose second split has a ratio of its own
            masking = MaskingConfig(mask_ratio=ratio, nearby_ratio=0.3)
            fixed = method_of(inputs, replace(config, masking=masking))
            plain = replace(split, visible=())
            torch.testing.assert_close(method(batch, split).loss, fixed(batch, plain).loss)
        assert torch.isfinite(method(batch, split).loss)
    assert len(seen) > 3


def test_what_does_not_go_together_is_refused() -> None:
    for masking in (
        {"ratio_range": (0.8, 0.2)},
        {"ratio_range": (0.5,)},
        {"ratio_range": (0, 0.5)},
    ):
        with pytest.raises(ConfigError, match=r"masking.ratio_range of two rising ratios"):
            MaskingConfig(**masking)
    config = config_of()
    ranged = MaskingConfig(ratio_range=(0.2, 0.8))
    with pytest.raises(ConfigError, match=r"masking.ratio_range empty where training.compile=on"):
        replace(config, masking=ranged, training=TrainingConfig(compile="on"))
    assert not replace(config, masking=ranged, training=TrainingConfig(steps=50_000)).compiles
    with pytest.raises(ConfigError, match=r"expected a mask ratio that leaves visible"):
        build_method(replace(config, masking=MaskingConfig(ratio_range=(0.5, 0.95))), (SIGNAL,))
    with pytest.raises(ConfigError, match=r"adaptation.step_size > 0 and learned=none"):
        AdaptationConfig(reduction=0.2, step_size=0.0)
    with pytest.raises(ConfigError, match=r"adaptation.reduction in \[0, 1\)"):
        AdaptationConfig(reduction=1.0)
    with pytest.raises(ConfigError, match=r"adaptation.reduction=0 where learn.settings"):
        make_config(
            "sensors", overrides=["adaptation.reduction=0.2", "learn.settings=[nearby_ratio]"]
        )


def test_a_held_reduction_and_drawn_ratios_resume_to_the_same_bits(tmp_path: Path) -> None:
    """The held size moves, is logged, and is part of the checkpoint."""
    data = load_dataset("basic_motions")
    settings = ("training.batch_size=8", "training.checkpoint_every=7", "training.log_every=1")
    ours = ("adaptation.reduction=0.3", "adaptation.step_size=5", "masking.ratio_range=[0.3,0.7]")
    whole, half = (
        make_config(
            "basic_motions", overrides=[*SIZES, *settings, *ours, f"training.steps={steps}"]
        )
        for steps in (24, 14)
    )
    straight = pretrain(whole, data, tmp_path / "a")
    pretrain(half, data, tmp_path / "b")
    resumed = pretrain(whole, data, tmp_path / "b", resume=True)
    sizes = [value for _, value in straight.history.series["step_size"]]
    assert len(set(sizes)) == 3  # moved after steps 1, 11 and 21
    assert resumed.history.series == straight.history.series
    weights = straight.method.state_dict()
    for name, value in resumed.method.state_dict().items():
        assert torch.equal(value, weights[name]), name
