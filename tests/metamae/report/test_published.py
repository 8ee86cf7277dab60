"""The paper's numbers: complete, and the right ones beside the right cells."""

from __future__ import annotations

from collections import Counter

import pytest

from metamae.config.names import METHODS
from metamae.data.pocket import POCKET, stands_for
from metamae.data.sources import SOURCES
from metamae.report.published import STAND_INS, look_up, published


def value(*cell: str) -> float:
    values = {one.value for one in look_up(*cell)}
    assert len(values) == 1
    return values.pop()


def test_every_table_is_there_with_all_its_cells() -> None:
    """Counted in the paper: methods times data sets, less what was not run."""
    assert Counter(one.table for one in published()) == {
        "Table 1": 6 * 7 - 2,
        "Table 2": 17 * 6,
        "Table 3": 2 * 6,
        "Table 4": 4 * 6,
        "Decoder depth": 5 * 3,
        "Nearby ratio": 4 * 3,
        "Table 9": 3 * 7,
        "Table 10": 2 * 4,
        "Sensitivity": 13 * 2,
    }


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("pamap2", "pamap2", "random"), 0.698),
        (("pamap2", "pamap2", "metamae"), 0.893),
        (("wafermap", "wafermap", "metamae"), 0.955),
        (("higgs", "higgs", "shed"), 0.680),
        (("genomics", "genomics_ood", "metamae"), 0.372),
        (("pfam", "secondary_structure", "shed"), 0.676),
        (("pfam", "fluorescence", "metamae"), 0.31),
        (("librispeech", "voxceleb1", "metamae"), 0.074),
        (("imagenet32", "aircraft", "mae_linear"), 0.059),
        (("mscoco", "mismatched_caption", "metamae"), 0.705),
        (("pamap2", "pamap2", "metamae", "no-contrast"), 0.883),
        (("librispeech", "librispeech", "mae", "depth-6"), 0.741),
        (("pfam", "pfam", "metamae", "nearby-0"), 0.620),
        (("genomics", "genomics", "metamae", "shared-3"), 0.554),
        (("genomics", "genomics", "metamae", "shared-2"), 0.667),
        (("pamap2", "pamap2", "metamae", "dropout-0"), 0.794),
        (("wafermap", "wafermap", "metamae", "contrast-1"), 0.936),
    ],
)
def test_spot_values(cell: tuple[str, ...], expected: float) -> None:
    assert value(*cell) == expected


def test_marks_and_metrics() -> None:
    marks = {(one.dataset, one.transfer, one.method): one.mark for one in published()}
    assert marks["librispeech", "librispeech", "random"] == "*"
    assert marks["wafermap", "wafermap", "shed"] == "+"
    assert marks["imagenet32", "cifar10", "emix"] == "*"
    assert marks["imagenet32", "cifar10", "capri"] == ""
    assert {one.transfer for one in published() if one.metric == "spearman"} == {
        "stability",
        "fluorescence",
    }
    assert {one.dataset for one in published() if one.metric == "weighted_f1"} == {"wafermap"}
    assert all(0 < one.value < 1 for one in published())


def test_cells_that_were_not_run_are_absent() -> None:
    assert look_up("pamap2", "pamap2", "capri") == ()
    assert look_up("pamap2", "pamap2", "supervised") == ()


def test_disagreement_is_kept() -> None:
    found = {one.table: one.value for one in look_up("librispeech", "librispeech", "mae_linear")}
    assert found == {"Table 1": 0.460, "Table 4": 0.333}


def test_names_are_those_of_methods_and_data_sets() -> None:
    """So that a run of a full set finds its number; sets without a reader yet are left out."""
    assert {one.method for one in published()} <= {*METHODS, "best-previous"}
    assert {one.dataset for one in published()} <= {stands_for(name) for name in POCKET} | {
        "wafermap"
    }
    everything = {one.dataset for one in published()} | {one.transfer for one in published()}
    assert set(SOURCES) <= everything


def test_an_embedded_set_has_the_numbers_of_what_it_stands_for() -> None:
    for (dataset, transfer), full in STAND_INS.items():
        assert {dataset, transfer} <= set(POCKET)
        assert full[0] == stands_for(dataset)
        assert look_up(dataset, transfer, "metamae") == look_up(*full, "metamae") != ()
    assert value("digits", "digits", "metamae") == 0.592
    assert look_up("sensors", "basic_motions", "metamae") == ()
    assert look_up("basic_motions", "basic_motions", "metamae") == ()
