"""The rows of Table 4: each differs from the one before by its component, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metamae import load_dataset, make_config
from metamae.config.schema import Config
from metamae.data.pocket import POCKET
from metamae.errors import ConfigError
from metamae.experiments.ablation import TABLE_4, ablate
from metamae.experiments.sweep_file import read_sweep
from metamae.methods.baselines.mae_linear import LinearMAE
from metamae.methods.building import build_method
from metamae.methods.mae import MAE
from metamae.methods.metamae import MetaMAE
from metamae.randomness import generator
from tests import ROOT


def row(name: str, dataset: str) -> Config:
    method, overrides = ablate(name, make_config(dataset))
    return make_config(dataset, method=method, overrides=overrides)


def flat(config: Config) -> dict[str, object]:
    return {
        f"{section}.{key}": value
        for section, values in config.to_dict().items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def test_each_row_adds_one_component() -> None:
    ticks = [tuple(vars(components).values()) for components in TABLE_4.values()]
    no, yes = False, True
    assert ticks == [(no, no, no), (yes, no, no), (yes, yes, no), (yes, yes, yes)]


@pytest.mark.parametrize("dataset", POCKET)
def test_rows_differ_in_what_they_name_alone(dataset: str) -> None:
    start = make_config(dataset)
    changed = {
        name: {key for key, value in flat(row(name, dataset)).items() if value != flat(start)[key]}
        for name in TABLE_4
    }
    assert changed == {
        "linear_decoder": {"method.", "baseline.corruption"}
        - ({"baseline.corruption"} if start.masking.mask_ratio == 0.15 else set()),
        "deep_decoder": {"method."},
        "inner_step": {"contrast.weight"},
        "full": set(),
    }


def test_rows_build_what_they_say() -> None:
    """And mask equally many tokens."""
    data = load_dataset("sensors")
    built = {name: build_method(row(name, "sensors"), data.inputs) for name in TABLE_4}
    kinds = [LinearMAE, MAE, MetaMAE, MetaMAE]
    assert [type(method) for method in built.values()] == kinds
    assert [getattr(built[n], "meta").contrast is None for n in ("inner_step", "full")] == [  # noqa: B009
        True,
        False,
    ]
    batch = data.pretrain.batch([0, 1, 2])
    masked = []
    for method in built.values():
        draw = method.draw(3, generator(0, "test"))
        masked.append((draw.index if hasattr(draw, "index") else draw.query_idx).shape[1])
        loss = method(batch, draw).loss
        (gradient,) = torch.autograd.grad(loss, [method.network.encoder.class_token])
        assert gradient.any()
    assert masked == [28, 28, 28, 28]


def test_a_row_without_its_component_is_refused() -> None:
    config = make_config("sensors")
    with pytest.raises(ConfigError, match=r"linear_decoder, .* did you mean 'inner_step'"):
        ablate("inner_steps", config)
    for setting, name in (
        ("contrast.weight", "full"),
        ("adaptation.step_size", "inner_step"),
        ("decoder.depth", "deep_decoder"),
    ):
        off = make_config("sensors", overrides=[f"{setting}=0"])
        with pytest.raises(ConfigError, match=f"expected {setting} > 0 for the ablation '{name}'"):
            ablate(name, off)


def test_the_sweep_of_table_4_has_its_rows(tmp_path: Path) -> None:
    """Six data sets for the paper's six, each row with its own method and settings."""
    file = ROOT / "benchmarks" / "sweeps" / "table4.yaml"
    cells = read_sweep(file).cells()
    first = [cell for cell in cells if cell.config.seed == 0]
    assert len(cells) == 3 * len(first) == 3 * 6 * 4
    for cell in first:
        assert cell.config == row(cell.variant.replace("-", "_"), cell.config.dataset)
    assert len({cell.name for cell in cells}) == len(cells)

    file = tmp_path / "sweep.yaml"
    file.write_text("datasets: [digits]\nvariants: {a: {ablation: full, methods: [mae]}}")
    with pytest.raises(ConfigError, match="no methods in variant 'a', whose ablation has its own"):
        read_sweep(file)
    file.write_text("datasets: [digits]\nvariants: {a: {ablation: fully}}")
    with pytest.raises(ConfigError, match=r"the ablation of variant 'a', .*did you mean 'full'"):
        read_sweep(file)
