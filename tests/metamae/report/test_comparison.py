"""Reports: their arithmetic by hand, and what they show of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from metamae import DataError
from metamae.report.comparison import Paired, average_over_sets, pair_results, summarise_results
from metamae.report.differences import draw_differences, interval
from metamae.report.figure import draw_report
from metamae.report.rows import Result, find_results, read_results, write_results
from metamae.report.style import VERDICTS
from metamae.report.tables import Section, make_report


def result(**values: Any) -> Result:
    given: dict[str, Any] = {
        "dataset": "sensors",
        "transfer": "sensors",
        "method": "mae",
        "seed": 0,
        "protocol": "published",
        "settings": "linear",
        "metric": "accuracy",
        "value": 0.5,
        "train_value": 0.9,
        "preset": "pocket",
        "steps": 100,
        "batch_size": 64,
        "pretrain_seconds": 10.0,
        "probe_seconds": 1.0,
        "device": "cpu",
        "hardware": "a processor",
        "torch": "2",
        "revision": "abc",
    }
    if "transfer" not in values:
        given["transfer"] = values.get("dataset", "sensors")
    given["probe_seed"] = values.get("seed", 0)
    return Result(**{**given, **values})


def runs(method: str, *values: float, **more: Any) -> list[Result]:
    return [result(method=method, seed=n, value=v, **more) for n, v in enumerate(values)]


TWO = [*runs("mae", 0.5, 0.6, 0.7), *runs("metamae", 0.6, 0.6, 0.9, pretrain_seconds=20.0)]


def table(sections: list[Section], start: str) -> list[tuple[str, ...]]:
    (found,) = [section for section in sections if section.title.startswith(start)]
    return [found.header, *found.lines]


# Arithmetic


def test_means_deviations_and_counts() -> None:
    few = runs("mae", 0.4, 0.6, protocol="few-5", spread=0.02, draws=10)
    lines = {line.protocol: line for line in summarise_results([*TWO[:3], *few])}
    published = lines["published"]
    assert published.mean == pytest.approx(0.6)
    assert published.spread == pytest.approx(0.1)
    assert (published.seeds, published.steps, published.seconds) == (3, 100, 10.0)
    assert lines["few-5"].mean == pytest.approx(0.5)
    assert lines["few-5"].spread == pytest.approx(0.02**0.5)
    assert lines["few-5"].draws == pytest.approx(0.02)
    (alone,) = summarise_results([result()])
    assert alone.spread is None


def test_several_probes_of_one_encoder_are_one_value() -> None:
    rows = [*TWO, result(seed=0, probe_seed=7, value=0.3), result(seed=1, probe_seed=7, value=0.8)]
    mae, _ = summarise_results(rows)
    assert mae.seeds == 3
    assert mae.mean == pytest.approx((0.4 + 0.7 + 0.7) / 3)
    assert mae.spread == pytest.approx(0.03**0.5)
    more = [result(method="metamae", seed=0, probe_seed=7, value=0.9)]
    (pair,) = pair_results([*rows, *more])
    assert pair.differences == pytest.approx(((0.1 + 0.6) / 2, 0.0, 0.2))


def test_other_steps_and_variants_are_not_mixed() -> None:
    rows = [result(), result(steps=200, value=0.9), result(variant="deep", value=0.1)]
    lines = summarise_results(rows)
    assert [(line.variant, line.steps, line.mean) for line in lines] == [
        ("default", 100, 0.5),
        ("default", 200, 0.9),
        ("deep", 100, 0.1),
    ]


def test_differences_are_taken_seed_by_seed() -> None:
    (pair,) = pair_results(TWO)
    assert pair.differences == pytest.approx((0.1, 0.0, 0.2))
    assert pair.mean == pytest.approx(0.1)
    assert pair.error == pytest.approx(0.1 / 3**0.5)
    assert pair.counts == (2, 1, 0)
    assert pair.verdict == "win"
    # Only seeds that both have, and equal steps.
    assert pair_results([*runs("mae", 0.5), *TWO[3:]])[0].differences == pytest.approx((0.1,))
    assert pair_results([*TWO[:3], *runs("metamae", 0.9, steps=7)]) == []
    untrained = runs("random", 0.2, 0.2, 0.2, steps=0)
    (other,) = pair_results([*untrained, *TWO[3:]], against="random")
    assert other.differences == pytest.approx((0.4, 0.4, 0.7))
    (turned,) = pair_results([*untrained, *TWO[3:]], "random", "metamae")
    assert turned.differences == pytest.approx((-0.4, -0.4, -0.7))


def test_numbers_of_steps_are_pairs_of_their_own() -> None:
    """A gain after many steps and a loss after few are no tie."""
    short = [*runs("mae", 0.6, steps=10), *runs("metamae", 0.4, steps=10)]
    long = [*runs("mae", 0.5, steps=1000), *runs("metamae", 0.7, steps=1000)]
    pairs = pair_results([*long, *short])
    assert [(p.steps, round(p.mean, 6)) for p in pairs] == [(10, -0.2), (1000, 0.2)]
    untrained = runs("random", 0.3, steps=0)
    both = pair_results([*long, *short, *untrained], "random", "mae")
    assert [(p.steps, round(p.mean, 6)) for p in both] == [(10, -0.3), (1000, -0.2)]
    places = [line[0] for line in table(make_report([*long, *short]), "MetaMAE minus MAE")[1:]]
    assert places == ["sensors, 10 steps", "sensors, 1000 steps"]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.1, 0.1), "win"),
        ((-0.1, -0.2), "loss"),
        ((0.0, 0.0), "tie"),
        ((0.3, -0.2), "tie"),
        ((0.5,), "tie"),
        ((1e-12, 1e-12), "tie"),
    ],
)
def test_verdicts(differences: tuple[float, ...], verdict: str) -> None:
    pair = Paired(
        dataset="a",
        transfer="a",
        variant="default",
        protocol="knn",
        metric="accuracy",
        differences=differences,
    )
    assert pair.verdict == verdict


def test_a_variant_is_compared_with_its_own_kind_first() -> None:
    rows = [
        *runs("mae", 0.5),
        *runs("mae", 0.3, variant="depth-4"),
        *runs("metamae", 0.6, variant="depth-4"),
        *runs("metamae", 0.6, variant="no-contrast"),
    ]
    found = {pair.variant: pair.mean for pair in pair_results(rows)}
    assert found == pytest.approx({"depth-4": 0.3, "no-contrast": 0.1})


# Sections


def test_methods_down_and_protocols_across() -> None:
    rows = [*TWO, *runs("metamae", 0.25, protocol="few-1", spread=0.125)]
    header, mae, metamae = table(make_report(rows), "sensors")
    assert header == (
        *("method", "published", "few-1", "seeds", "steps", "seconds", "paper, full data"),
    )
    assert mae == ("MAE (deep)", "60.0 ± 10.0", "-", "3", "100", "10.0", "86.5")
    assert metamae[:4] == ("MetaMAE", "70.0 ± 17.3", "25.0 (12.5)", "3")
    assert metamae[-1] == "89.3"


def test_the_paper_is_named_for_what_it_is() -> None:
    sections = make_report([*TWO, *runs("random", 0.2, steps=0)])
    note = " ".join(sections[0].notes)
    assert "pamap2" in note
    assert "not comparable" in note
    assert "+ is copied from DABS 2.0." in note
    full = make_report(runs("metamae", 0.5, dataset="genomics", transfer="genomics_ood"))[0]
    assert full.title == "genomics -> genomics_ood: accuracy, %"
    assert full.header[-1] == "paper"
    assert full.lines[0][-1] == "37.2"
    assert "not comparable" not in " ".join(full.notes)
    smoke = make_report(runs("mae", 0.5, transfer="basic_motions"))[0]
    assert (smoke.lines[0][-1], smoke.notes) == ("-", [])


def test_disagreeing_tables_are_both_shown() -> None:
    (line,) = make_report(runs("mae_linear", 0.5, dataset="vowels"))[0].lines
    assert line[-1] == "46.0 (Table 1), 33.3 (Table 4)"


def test_correlations_are_not_percent() -> None:
    rows = runs("metamae", 0.5, 0.52, dataset="pfam", transfer="stability", metric="spearman")
    section = make_report(rows)[0]
    assert section.title == "pfam -> stability: spearman"
    assert section.lines[0][1] == "0.51 ± 0.01"
    assert section.lines[0][-1] == "0.53"


def test_verdicts_over_data_sets() -> None:
    rows = [
        *TWO,
        *runs("mae", 0.5, 0.5, dataset="digits"),
        *runs("metamae", 0.4, 0.4, dataset="digits"),
        *runs("mae", 0.5, dataset="genomes"),
        *runs("metamae", 0.9, dataset="genomes"),
        *runs("mae", 0.1, dataset="captioned"),
        *runs("metamae", 0.9, dataset="captioned"),
    ]
    sections = make_report(rows)
    assert table(sections, "MetaMAE against MAE")[1:] == [
        ("default", "published", "+13.3", "1", "1", "1", "3/1/2")
    ]
    (overall,) = (one for one in sections if one.title.startswith("MetaMAE against MAE"))
    assert overall.notes == [
        "Left out, for they tell no method from another: captioned (a supervised encoder learns "
        "nothing there)."
    ]
    assert not any("against" in one.title for one in make_report(rows[-2:]))
    pairs = table(sections, "MetaMAE minus MAE")[1:]
    assert pairs[0] == (*("sensors", "default", "published", "+10.0 ± 5.8", "2", "1", "0", "win"),)


def test_settings_and_machines_are_told() -> None:
    sections = make_report([*TWO, *runs("mae", 0.1, protocol="knn", settings="twenty")])
    assert table(sections, "Protocols")[1:] == [("published", "linear"), ("knn", "twenty")]
    assert table(sections, "Where")[1:] == [("a processor", "2", "abc")]


def test_a_section_prints_and_is_markdown() -> None:
    section = Section(title="One [x]", header=("a", "b"), lines=[("x", "1.5")], notes=["Why [y]."])
    stream = io.StringIO()
    section.print(Console(file=stream, width=60))
    for text in ("One", "a", "1.5", "Why [y]."):
        assert text in stream.getvalue()
    assert section.markdown() == (
        "## One [x]\n\n| a | b |\n| --- | --- |\n| x | 1.5 |\n\nWhy [y].\n"
    )


def test_the_figure(tmp_path: Path) -> None:
    rows = [*TWO, *runs("metamae", 0.3, dataset="digits", protocol="knn")]
    draw_report(rows, tmp_path / "new" / "report.png")
    image = imread(tmp_path / "new" / "report.png")
    assert image.shape[1] > image.shape[0] > 200
    assert image[..., :3].std() > 0.02


def test_the_figure_of_differences(tmp_path: Path) -> None:
    """Means where they are, colours by verdict; a method without results is named."""
    draw_differences(TWO, tmp_path / "new" / "differences.png")
    image = imread(tmp_path / "new" / "differences.png")[..., :3]
    (pair,) = pair_results(TWO)
    blue = (abs(image - to_rgb(VERDICTS[pair.verdict])).max(-1) < 0.01).sum()
    assert blue > 30  # a dot
    with pytest.raises(DataError, match="results of shed and of mae on the same data"):
        draw_differences(TWO, tmp_path / "none.png", method="shed")
    assert not (tmp_path / "none.png").exists()


def test_the_interval_is_students() -> None:
    """Of four differences: t(.975, 3) = 3.182 times the standard error."""
    (pair,) = pair_results(TWO)
    place = {name: getattr(pair, name) for name in ("dataset", "transfer", "variant", "protocol")}
    four = Paired(**place, metric="accuracy", differences=(0.0, 0.2, 0.0, 0.2))
    assert interval(four) == pytest.approx(3.182446 * 0.2 / 12**0.5)


# Files


def test_results_read_back_as_written(tmp_path: Path) -> None:
    rows = [result(value=1 / 3, extra={"strength": 0.1}), result(seed=1)]
    write_results(tmp_path / "results.json", rows)
    assert read_results(tmp_path / "results.json") == rows
    assert read_results(tmp_path / "none.json") == []
    assert len({row.key for row in (*rows, result(probe_seed=5))}) == 3


@pytest.mark.parametrize(
    "change", [{"value": "x"}, {"seed": 0.5}, {"extra": []}, {"dataset": None}, {"loss": 1}]
)
def test_damaged_results_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([asdict(result()) | change]))
    with pytest.raises(DataError, match="move it away"):
        read_results(path)


def test_averages_are_over_the_sets_that_all_methods_have() -> None:
    """First over data sets, then over seeds; variants, transfers and other sets are left out."""
    values = {("sensors", 0): 0.5, ("sensors", 1): 0.7, ("digits", 0): 0.1, ("digits", 1): 0.5}
    rows = [
        result(dataset=name, transfer=name, seed=seed, method=method, value=value + shift)
        for (name, seed), value in values.items()
        for method, shift in (("mae", 0.0), ("metamae", 0.2))
    ]
    other = [
        result(dataset="genomes", transfer="genomes", method="mae"),  # one method, one seed
        *(
            result(dataset="vowels", transfer="vowels", seed=seed, method=method, value=0.0)
            for seed in (0, 1)
            for method in ("mae", "metamae")  # which all have, but which tells nothing
        ),
        result(dataset="sensors", transfer="basic_motions", value=0.0),
        result(variant="wide", value=0.0),
    ]
    averages, names = average_over_sets([*rows, *other])
    assert names == ["sensors", "digits"]
    found = {one.method: one for one in averages}
    assert found["mae"].mean == pytest.approx((0.3 + 0.6) / 2)
    assert found["metamae"].mean == pytest.approx((0.5 + 0.8) / 2)
    assert found["mae"].spread == pytest.approx(0.3 / 2**0.5)
    # Several probes of one encoder count as one value, their mean, as in every other table.
    probes = [result(value=0.2, probe_seed=1), result(value=0.4, probe_seed=2)]
    assert average_over_sets(probes)[0][0].mean == pytest.approx(0.3)
    # Runs of other lengths are not mixed.
    longer = result(dataset="digits", transfer="digits", steps=7, value=0.9)
    assert average_over_sets([*rows, longer])[1] == ["sensors"]
    assert average_over_sets(other[:1])[0][0].spread is None
    assert average_over_sets([]) == ([], [])


def test_results_are_found_in_folders(tmp_path: Path) -> None:
    write_results(tmp_path / "a" / "results.json", [result(), result(seed=1)])
    write_results(tmp_path / "b" / "deep" / "probes.json", [result(protocol="knn")])
    (tmp_path / "b" / "history.json").write_text("{}")
    assert len(find_results([tmp_path])) == 3
    assert len(find_results([tmp_path / "b"])) == 1
    again = [tmp_path / "a", tmp_path / "a" / "results.json"]
    assert len(find_results(again)) == 2
    with pytest.raises(DataError, match=r"expected results in .*b/none, found none"):
        find_results([tmp_path / "b" / "none"])
