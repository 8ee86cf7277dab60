"""Configuration: published presets, overrides, and errors that name the key at fault."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from metamae import Config, ConfigError, build_method, load_dataset, make_config
from metamae.config import (
    AdaptationConfig,
    BaselineConfig,
    CapriConfig,
    ContrastConfig,
    DecoderConfig,
    EMixConfig,
    EncoderConfig,
    LearnConfig,
    MaskingConfig,
    ProbeConfig,
    TrainingConfig,
)
from metamae.config.names import METHODS
from metamae.config.presets import list_presets, load_preset
from metamae.config.schema import COMPARED, PRESETS
from metamae.data.pocket import POCKET, stands_for
from metamae.data.sources import SOURCES

# Table 8 of the paper: step size, contrast weight, decoder depth, dropout, mask ratio, batch; and
# the batch of the probe.
TABLE_8 = {
    "pamap2": (0.5, 1.0, 4, 0.1, 0.85, 256, 256),
    "higgs": (1.0, 1.0, 6, 0.1, 0.5, 256, 256),
    "eurosat": (0.1, 1.0, 4, 0.0, 0.85, 64, 64),
    "genomics": (0.1, 0.01, 2, 0.0, 0.5, 32, 64),
    "pfam": (0.1, 1.0, 4, 0.0, 0.15, 128, 128),
    "librispeech": (0.1, 1.0, 4, 0.0, 0.85, 64, 64),
    "wafermap": (0.1, 0.1, 6, 0.0, 0.15, 128, 128),
    "imagenet32": (0.1, 0.1, 4, 0.0, 0.85, 64, 64),
    "mscoco": (0.5, 0.1, 2, 0.0, 0.5, 64, 64),
}
SMALL = ("encoder.depth=1", "decoder.depth=1")


def test_there_is_a_preset_for_every_data_set() -> None:
    """Of the paper and in the pocket, and for nothing else."""
    assert set(list_presets("paper")) == set(list_presets("shared")) == set(TABLE_8)
    assert set(TABLE_8) <= set(SOURCES)
    assert set(list_presets("pocket")) == set(POCKET)


@pytest.mark.parametrize("name", TABLE_8)
def test_a_paper_preset_holds_the_published_settings(name: str) -> None:
    """Table 8, and what all data sets share (appendix of the paper)."""
    config = make_config(name, preset="paper")
    assert TABLE_8[name] == (
        config.adaptation.step_size,
        config.contrast.weight,
        config.decoder.depth,
        config.encoder.dropout,
        config.masking.mask_ratio,
        config.training.batch_size,
        config.probe.batch_size,
    )
    assert (config.encoder.width, config.encoder.depth, config.encoder.heads) == (256, 12, 8)
    assert (config.decoder.width, config.decoder.heads) == (128, 4)
    assert config.encoder.mlp_ratio == config.decoder.mlp_ratio == 2.0
    assert (config.contrast.hidden, config.contrast.out) == (1024, 128)
    assert (config.contrast.temperature, config.masking.nearby_ratio) == (0.5, 0.1)
    assert (config.adaptation.steps, config.adaptation.differentiation) == (1, "unrolled")
    assert (config.adaptation.learned, config.training.autocast) == ("none", "off")
    assert (config.training.steps, config.training.checkpoint_every) == (100_000, 10_000)
    assert config.training.learning_rate == config.training.weight_decay == 1e-4
    assert config.probe.learning_rate == config.probe.weight_decay == 1e-4
    assert (config.probe.epochs, config.probe.standardise) == (100, False)


@pytest.mark.parametrize("name", TABLE_8)
def test_a_shared_preset_differs_in_three_settings(name: str) -> None:
    """Table 9: step size, contrast weight and decoder depth, the same for all modalities."""
    own, shared = (make_config(name, preset=kind).to_dict() for kind in ("paper", "shared"))
    own["preset"] = "shared"
    own["adaptation"]["step_size"], own["contrast"]["weight"] = 0.5, 0.1
    own["decoder"]["depth"] = 4
    assert shared == own


@pytest.mark.parametrize("name", POCKET)
@pytest.mark.parametrize("preset", PRESETS)
def test_all_presets_presets_of_a_pocket_set_fit_its_data(name: str, preset: str) -> None:
    """The method can be built: every mask ratio leaves tokens on both sides."""
    stem = name if preset == "pocket" else stands_for(name)
    config = make_config(name, preset=preset, preset_name=stem, overrides=SMALL)
    data = load_dataset(name)
    method = build_method(config, data.inputs)
    assert all(count > 0 for count in method.network.masking.support_counts)
    assert all(count > 0 for count in method.network.masking.query_counts)
    if preset == "pocket":
        assert config.training.batch_size <= len(data.pretrain)


@pytest.mark.parametrize(("preset", "name"), [(p, n) for p in PRESETS for n in list_presets(p)])
def test_yaml_round_trips(preset: str, name: str) -> None:
    """A saved configuration reads back as the same object, tuples and bare `off` included."""
    config = make_config(name, preset=preset, overrides=["token_size=[4, 2]"], seed=3)
    assert config.token_size == (4, 2)
    assert Config.from_dict(yaml.safe_load(config.to_yaml())) == config
    assert Config.from_dict(config.to_dict()) == config
    assert list(config.to_dict()) == [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainig.steps=1", "training"),
        ("sed=1", "seed"),
        ("training.step=1", "steps"),
        ("encoder.widht=16", "width"),
        ("adaptation.stepsize=1", "step_size"),
        ("probe.standardize=true", "standardise"),
        ("contrast.temprature=1", "temperature"),
        ("masking.mask_ration=0.5", "mask_ratio"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    """At the top and inside a section; the section is named too."""
    wrong = override.partition("=")[0].split(".")
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'") as caught:
        make_config("sensors", overrides=[override])
    assert repr(wrong[-1] if wrong[-1] != "steps" else wrong[0]) in str(caught.value)
    if len(wrong) == 2 and wrong[0] != "trainig":
        assert f"in {wrong[0]} (" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=1.5",
        "training.steps=true",
        "training.steps=1e3",
        "training.steps=many",
        "training.steps=",
        "training.learning_rate=abc",
        "training.learning_rate=false",
        "training.learning_rate=[1.0]",
        "encoder.width=null",
        "encoder.dropout=true",
        "probe.standardise=1",
        "seed=0.5",
        "dataset=3",
        "method=3",
        "token_size=[2, x]",
        "token_size=[true]",
    ],
)
def test_a_wrong_type_is_refused(override: str) -> None:
    """Naming the key and what was given; a bool is no int, an int is no bool."""
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"expected {key} to be (int|float|bool|str), got "):
        make_config("sensors", overrides=[override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=3E2", 300.0),
        ("training.learning_rate=1", 1.0),
        ("training.learning_rate=0.5", 0.5),
        ("training.steps=7", 7),
        ("training.autocast=off", "off"),
        ("training.autocast=bfloat16", "bfloat16"),
        ("probe.standardise=true", True),
        ("token_size=4", (4,)),
        ("token_size=[4, 2]", (4, 2)),
        ("token_size=[]", ()),
    ],
)
def test_an_override_is_read_as_yaml(override: str, expected: Any) -> None:
    """With the exponents and the bare `off` that YAML 1.1 gets wrong."""
    value: Any = make_config("sensors", overrides=[override])
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_what_comes_later_wins() -> None:
    """Defaults, then the preset, then keyword values, then overrides from left to right."""
    preset = load_preset("pocket", "sensors")["training"]["steps"]
    assert make_config("sensors").training.steps == preset != Config(dataset="x").training.steps
    assert make_config("sensors", seed=3).seed == 3
    overrides = ["seed=4", "training.steps=5", "training.steps=6"]
    config = make_config("sensors", seed=3, overrides=overrides)
    assert (config.seed, config.training.steps) == (4, 6)
    assert make_config("sensors").training == dataclasses.replace(
        config.training, steps=make_config("sensors").training.steps
    )


@pytest.mark.parametrize("override", ["x", "=3", "training", "training.steps:3", ""])
def test_an_override_needs_key_and_value(override: str) -> None:
    with pytest.raises(ConfigError, match="expected an override like training"):
        make_config("sensors", overrides=[override])


@pytest.mark.parametrize("override", ["training=5", "encoder=[]", "encoder=null"])
def test_a_section_is_not_a_value(override: str) -> None:
    section = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"expected a section for {section}"):
        make_config("sensors", overrides=[override])


def test_a_value_is_not_a_section() -> None:
    with pytest.raises(ConfigError, match=r"a section before the last dot of 'training\.steps\.x'"):
        make_config("sensors", overrides=["training.steps.x=3"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", "seed >= 0"),
        ("method=mea", "did you mean 'mae'"),
        ("preset=small", "preset among pocket, paper"),
        ("encoder.width=18", "encoder.width to be a positive multiple of 4"),
        ("encoder.width=0", "encoder.width to be a positive multiple of 4"),
        ("encoder.heads=3", "encoder.heads to divide encoder.width"),
        ("encoder.heads=0", "encoder.heads to divide encoder.width"),
        ("decoder.heads=3", "decoder.heads to divide decoder.width"),
        ("encoder.depth=-1", "encoder.depth >= 0"),
        ("encoder.dropout=1", r"encoder.dropout in \[0, 1\)"),
        ("encoder.dropout=.nan", r"encoder.dropout in \[0, 1\)"),
        ("adaptation.step_size=-0.1", "adaptation.step_size >= 0"),
        ("adaptation.steps=0", "adaptation.steps >= 1"),
        ("adaptation.learned=all", "adaptation.learned among none, scalar, channel, step"),
        ("adaptation.differentiation=exact", "among unrolled, first_order"),
        ("contrast.weight=-1", "contrast.weight >= 0"),
        ("contrast.temperature=0", "contrast.temperature > 0"),
        ("training.steps=-1", "training.steps >= 0"),
        ("training.batch_size=0", "training.batch_size >= 1"),
        ("training.log_every=0", "training.log_every >= 1"),
        ("training.checkpoint_every=0", "training.checkpoint_every >= 1"),
        ("training.learning_rate=0", "training.learning_rate > 0"),
        ("training.learning_rate=nan", "training.learning_rate > 0"),
        ("training.weight_decay=-1", "training.weight_decay >= 0"),
        ("training.autocast=float16", "training.autocast among off, bfloat16"),
        ("probe.epochs=0", "probe.epochs >= 1"),
        ("probe.batch_size=0", "probe.batch_size >= 1"),
        ("probe.learning_rate=0", "probe.learning_rate > 0"),
    ],
)
def test_an_impossible_value_is_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_config("sensors", overrides=[override])


@pytest.mark.parametrize(
    "override",
    [
        "encoder.mlp_ratio=0",
        "decoder.mlp_ratio=-1",
        "contrast.hidden=0",
        "contrast.out=0",
        "probe.weight_decay=-1",
        "adaptation.step_size=.inf",
    ],
)
def test_a_value_that_only_torch_would_refuse_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        make_config("sensors", overrides=[override])


def test_a_zero_step_size_cannot_be_learned() -> None:
    with pytest.raises(ConfigError, match=r"adaptation\.step_size"):
        make_config("sensors", overrides=["adaptation.step_size=0", "adaptation.learned=scalar"])


def test_broken_yaml_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"YAML value in override 'training\.steps=\['") as caught:
        make_config("sensors", overrides=["training.steps=["])
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sensors'") as caught:
        load_preset("pocket", "sensor")
    assert all(name in str(caught.value) for name in POCKET)


def test_a_configuration_cannot_be_changed_and_knows_its_methods() -> None:
    config = make_config("sensors")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    baselines = ("emix", "shed", "capri", "mae_linear", "lfr")
    ours = ("mae", "umae", "mae_contrast", "gon", "metamae")
    assert list(METHODS) == ["random", *baselines, *ours, "supervised"]
    assert list(COMPARED) == ["random", "mae", "metamae"]
    with pytest.raises(ConfigError, match="expected all required keys"):
        Config.from_dict({"seed": 3})


def test_learned_settings_are_not_compiled() -> None:
    """The outer level re-evaluates the eager loss, so a compiled one would be left unused."""
    learned = ["learn.settings=[step_size]"]
    assert make_config("sensors", overrides=learned).learn.settings == ("step_size",)
    with pytest.raises(ConfigError, match="training\\.compile=off or auto where learn\\.settings"):
        make_config("sensors", overrides=[*learned, "training.compile=on"])


@pytest.mark.parametrize(
    ("expected", "method", "overrides"),
    [
        (True, "metamae", ["training.steps=10000"]),
        (True, "mae", ["training.steps=10000", "adaptation.differentiation=first_order"]),
        (False, "metamae", ["training.steps=9999"]),
        (True, "metamae", ["training.steps=5", "training.compile=on"]),
        (False, "metamae", ["training.steps=10000", "training.compile=off"]),
        (False, "metamae", ["training.steps=10000", "adaptation.differentiation=checkpointed"]),
        (False, "metamae", ["training.steps=10000", "learn.settings=[step_size]"]),
        (False, "emix", ["training.steps=10000"]),
        (True, "metamae", ["training.steps=5", "training.cuda_graphs=on"]),
    ],
)
def test_long_runs_that_can_be_traced_are_compiled(
    expected: bool, method: str, overrides: list[str]
) -> None:
    assert make_config("sensors", method=method, overrides=overrides).compiles is expected


def test_graphs_of_what_cannot_be_compiled_are_refused() -> None:
    """Rather than accepted and left unused."""
    for other in ("adaptation.differentiation=checkpointed", "learn.settings=[step_size]"):
        with pytest.raises(ConfigError, match=r"where (training\.compile=on|learn\.settings)"):
            make_config("sensors", overrides=["training.cuda_graphs=on", other])


@pytest.mark.parametrize("preset", ["paper", "shared"])
def test_runs_of_the_papers_length_are_compiled_and_short_ones_are_not(preset: str) -> None:
    assert all(make_config(name, preset=preset).compiles for name in list_presets(preset))
    assert not any(make_config(name).compiles for name in list_presets("pocket"))


SECTIONS = {
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "masking": MaskingConfig,
    "adaptation": AdaptationConfig,
    "contrast": ContrastConfig,
    "baseline": BaselineConfig,
    "baseline.emix": EMixConfig,
    "baseline.capri": CapriConfig,
    "training": TrainingConfig,
    "probe": ProbeConfig,
    "learn": LearnConfig,
}
REALS = [
    (name, entry.name, "tuple" in str(entry.type))
    for name, section in SECTIONS.items()
    for entry in dataclasses.fields(section)
    if "float" in str(entry.type)
]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize(("section", "name", "several"), REALS)
def test_no_setting_is_infinite(section: str, name: str, several: bool, value: str) -> None:
    """From a text, and built in Python."""
    text = f"[{value}]" if several else value
    with pytest.raises(ConfigError, match=f"expected .*{name}"):
        make_config("sensors", overrides=[f"{section}.{name}={text}"])
    with pytest.raises(ConfigError, match=f"expected .*{name}"):
        SECTIONS[section](**{name: (float(value),) if several else float(value)})


@pytest.mark.parametrize("seed", [2**64, 2**70, -1, 10**400])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ConfigError, match="expected seed >= 0"):
        make_config("sensors", seed=seed)
    assert make_config("sensors", seed=2**64 - 1).seed == 2**64 - 1


def test_differences_in_bfloat16_are_refused_where_they_are_used() -> None:
    overrides = ["adaptation.differentiation=finite_difference", "training.autocast=bfloat16"]
    with pytest.raises(ConfigError, match=r"training\.autocast=off, or another policy"):
        make_config("sensors", overrides=overrides)
    assert make_config("sensors", overrides=overrides, method="mae").method == "mae"


def test_an_mlp_has_a_unit() -> None:
    with pytest.raises(ConfigError, match="a unit or more to width 128"):
        make_config("sensors", overrides=["encoder.mlp_ratio=1e-9"])
    assert make_config("sensors", overrides=["encoder.mlp_ratio=0.0078125"])


@pytest.mark.parametrize("preset", ["nope", "", "..", None, 3])
def test_an_unknown_kind_of_preset(preset: Any) -> None:
    with pytest.raises(ConfigError, match="expected a preset"):
        make_config("sensors", preset=preset)


@pytest.mark.parametrize("text", ["9" * 5000, "2020-13-45", "[" * 3000, "{[]: 1}", "!!python/none"])
def test_what_yaml_cannot_read(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a") as caught:
        make_config("sensors", overrides=[f"encoder.width={text}"])
    assert len(str(caught.value)) < 1000
