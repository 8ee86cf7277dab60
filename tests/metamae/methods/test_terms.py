"""``contrast.term``: what compares the views of the methods that contrast."""

from __future__ import annotations

import pytest
import torch

from metalearn import Isotropy, vicreg
from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.errors import ConfigError
from metamae.methods.building import build_method
from metamae.methods.metamae import MetaMAE
from metamae.methods.objective import TERMS
from tests.tiny import SIZES


def config_of(*overrides: str) -> Config:
    own = [*SIZES, "training.batch_size=6", "contrast.weight=0.7", *overrides]
    return make_config("basic_motions", overrides=own)


@pytest.mark.parametrize("name", ["vicreg", "isotropy"])
def test_it_takes_the_place_of_nt_xent(name: str) -> None:
    data = load_dataset("basic_motions")
    method = build_method(config_of(f"contrast.term={name}"), data.inputs)
    usual = build_method(config_of(), data.inputs)
    assert isinstance(method, MetaMAE)
    contrast = method.meta.contrast
    assert contrast is not None
    for key, weight in usual.state_dict().items():  # all else starts as without it
        assert torch.equal(method.state_dict()[key], weight)
    split = method.draw(6, torch.Generator().manual_seed(0))
    batch = data.need("pretrain").batch(slice(0, 6))
    parts, result = method.parts(batch, split), method(batch, split)
    first, second = (contrast.projector(rows) for rows in parts.rows)
    term = vicreg if name == "vicreg" else contrast.term
    assert isinstance(contrast.term, Isotropy) == (name == "isotropy")
    assert term is not None
    torch.testing.assert_close(result.terms["contrast"], term(first, second).detach())
    torch.testing.assert_close(result.loss, parts.own + 0.7 * term(first, second))
    result.loss.backward()
    assert all(p.grad is not None for p in contrast.projector.parameters())


def test_the_terms_are_those_that_configurations_may_name() -> None:
    for name in TERMS:
        make_config("sensors", overrides=[f"contrast.term={name}"])
    for overrides, text in (
        (["contrast.term=clip"], f"contrast.term among {', '.join(TERMS)}, got 'clip'"),
        (["method=mae"], "a method among mae_contrast, metamae, random, got 'vicreg with mae'"),
        (["learn.settings=[step_size]"], "contrast.term=nt_xent where learn.settings names some"),
        (["contrast.weight=0"], "contrast.weight > 0 where contrast.term is not nt_xent"),
    ):
        with pytest.raises(ConfigError) as fault:
            make_config("sensors", overrides=["contrast.term=vicreg", *overrides])
        assert text in str(fault.value)
