"""What curves over labels say: intervals, equal numbers of labels, decisions, the sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metamae.evaluation.drawing import ALL, overlap
from metamae.report.label_curves import (
    Curves,
    Interval,
    decide,
    equal_labels,
    interval,
    paired_difference,
)
from metamae.report.label_figure import draw_label_curves
from metamae.report.label_page import Comparison, write_html, write_markdown
from metamae.report.label_sentence import judge, show_labels, write_sentence

Array = np.ndarray[Any, Any]
NUMBERS = (1, 5, 20, ALL)
TITLES = {"raw_logistic": "raw + logistic", "components": "PCA + logistic", "metamae": "MetaMAE"}


def table(mean: float, seeds: int = 1, draws: int = 6, spread: float = 0.01) -> Array:
    """Values with exactly this mean."""
    noise = np.random.default_rng(0).normal(size=(seeds, draws)) * spread
    values: Array = mean + noise - noise.mean()
    return values


def curves(by_name: Mapping[str, list[float]], spread: float = 0.01) -> Curves:
    values = {}
    for stage in ("validation", "test"):
        for name, means in by_name.items():
            seeds = 2 if name == "metamae" else 1
            values[stage, name] = {
                number: table(mean, seeds, spread=spread)
                for number, mean in zip(NUMBERS, means, strict=True)
            }
    return Curves(
        titles=TITLES,
        pretrained=("metamae",),
        numbers=NUMBERS,
        by_class=True,
        all_labels=80.0,
        metric="accuracy",
        test_rows=2000,
        values=values,  # type: ignore[arg-type]
    )


GOOD = {
    "raw_logistic": [0.4, 0.6, 0.8, 0.9],
    "components": [0.4, 0.5, 0.6, 0.7],
    "metamae": [0.5, 0.7, 0.85, 0.88],
}
BAD = GOOD | {"metamae": [0.3, 0.5, 0.6, 0.7]}


def test_an_interval_is_that_of_draws_and_seeds() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, size=(1, 400))
    value, low, high = interval(values)
    assert value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    apart = np.array([[0.2] * 9, [0.8] * 9])
    assert interval(apart)[1:] == (pytest.approx(0.2), pytest.approx(0.8)), "seeds count too"
    assert interval(values) == interval(values)


def test_a_paired_difference_is_students_with_the_overlap_of_cuts() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.6, 0.05, (1, 8)), rng.normal(0.5, 0.05, (1, 20))
    value, low, high = paired_difference(first, second)
    differences = (first - second[:, :8])[0]
    assert value == pytest.approx(differences.mean())
    margin = stats.t.ppf(0.975, 7) * differences.std(ddof=1) * math.sqrt(overlap(8))
    assert (value - low, high - value) == (pytest.approx(margin), pytest.approx(margin))


def test_seeds_widen_a_paired_difference() -> None:
    other = np.full((1, 4), 0.5)
    alike = paired_difference(np.full((2, 4), 0.6), other)
    apart = paired_difference(np.array([[0.5] * 4, [0.7] * 4]), other)
    assert alike.low == pytest.approx(0.1)
    assert apart.value == pytest.approx(0.1)
    assert apart.low < 0


def test_one_draw_decides_nothing() -> None:
    assert paired_difference(np.ones((1, 1)), np.zeros((1, 1))).low == -math.inf


def test_equal_labels_lie_on_the_curve() -> None:
    """.7 is half way from .6 to .8, on the logarithm of 5 to 20 labels."""
    found = equal_labels(curves(GOOD), "metamae", "raw_logistic", 5)
    assert found.value == pytest.approx(10, rel=1e-6)
    assert 8 < found.low < 10 < found.high < 12


def test_equal_labels_beyond_the_curve_are_said() -> None:
    known = curves(GOOD | {"metamae": [0.5, 0.95, 0.95, 0.95]})
    beyond = equal_labels(known, "metamae", "raw_logistic", 5)
    assert beyond.value == math.inf
    assert show_labels(beyond, known).startswith("more than all 80 [")
    before = equal_labels(curves(BAD), "metamae", "raw_logistic", 1)
    assert before.value == pytest.approx(1)
    assert show_labels(before, known).startswith("1 [1, ")


def test_curves_that_fall_are_read_where_they_first_rise() -> None:
    known = curves(GOOD | {"raw_logistic": [0.4, 0.72, 0.6, 0.9]})
    found = equal_labels(known, "metamae", "raw_logistic", 5).value
    assert 1 < found < 5


def test_pretraining_is_recommended_where_it_shows() -> None:
    decision = decide(curves(GOOD), 5)
    assert (decision.plain, decision.pretrained) == ("raw_logistic", "metamae")
    assert decision.pays
    assert decision.recommended == "metamae"
    every = decide(curves(GOOD), ALL)
    assert not every.pays
    assert every.recommended == "raw_logistic"


def test_noise_is_no_reason_to_pretrain() -> None:
    decision = decide(curves(GOOD, spread=0.3), 5)
    assert decision.difference.value > 0
    assert not decision.pays


def test_the_best_plain_one_is_ranked_on_shared_draws() -> None:
    """A candidate with few draws, all of them hard ones, is not thought worse for that."""
    known = curves(GOOD)
    hard = np.linspace(0.3, 0.9, 20)[None]
    validation = dict(known.values)
    validation["validation", "raw_logistic"] = {5: hard}
    validation["validation", "components"] = {5: hard[:, :5] + 0.02}
    changed = Curves(**(vars(known) | {"values": validation}))
    assert decide(changed, 5).plain == "components"


def test_verdicts_on_test_rows() -> None:
    known = curves(GOOD)
    verdict = judge(known, decide(known, 5))
    assert verdict.word == "right"
    assert (verdict.best, verdict.regret) == ("metamae", 0)
    values = dict(known.values)
    values["test", "metamae"] = {5: table(0.5, 2)}
    wrong = judge(Curves(**(vars(known) | {"values": values})), decide(known, 5))
    assert wrong.word == "wrong"
    assert wrong.best == "raw_logistic"
    assert wrong.regret == pytest.approx(0.1)
    few = judge(Curves(**(vars(known) | {"test_rows": 20})), decide(known, 5))
    assert few.word == "too close to call", "20 test rows say nothing of ten points"


def test_candidates_with_fewer_draws_are_held_against_the_same_ones() -> None:
    """Equal on every draw that both have, they are equal: in labels, in words, and as the best."""
    known = curves({name: [0.5, 0.6, 0.7, 0.8] for name in TITLES})
    values = dict(known.values)
    hard_first = np.array([0.5, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])[None]
    for stage in ("validation", "test"):
        values[stage, "raw_logistic"] = {n: hard_first for n in NUMBERS}
        values[stage, "metamae"] = {n: np.repeat(hard_first, 2, 0) for n in NUMBERS}
        values[stage, "components"] = {n: hard_first[:, :2] for n in NUMBERS}
    equal = Curves(**(vars(known) | {"values": values}))
    assert equal_labels(equal, "metamae", "components", 5).value <= 1 + 1e-9
    decision = replace(decide(equal, 5), plain="components")
    assert judge(equal, decision).regret == pytest.approx(0)
    assert "(50.0 % against 50.0 % with" in write_sentence(equal, decision, decision)


@pytest.mark.parametrize(("first", "second"), [(1.0, 0.975), (0.975, 1.0)])
def test_a_perfect_score_on_few_rows_is_no_certainty(first: float, second: float) -> None:
    """One of forty rows: too close to call whichever is recommended."""
    known = curves(GOOD)
    values = dict(known.values)
    values["test", "metamae"] = {5: np.full((2, 6), first)}
    values["test", "raw_logistic"] = {5: np.full((1, 6), second)}
    verdict = judge(Curves(**(vars(known) | {"values": values, "test_rows": 40})), decide(known, 5))
    shares = [(40 * value + 1) / 42 for value in (first, second)]
    margin = 1.96 * math.sqrt(sum(share * (1 - share) for share in shares) / 40)
    assert verdict.word == "too close to call"
    assert verdict.difference.high - verdict.difference.value == pytest.approx(margin)


def test_the_sentence() -> None:
    known = curves(GOOD)
    text = write_sentence(known, decide(known, 5), decide(known, ALL))
    assert text.startswith("Pretraining pays here: 5 labels a class with MetaMAE do what 10 ["), (
        text
    )
    assert "do with raw + logistic (70.0 % against 60.0 % with 5 labels a class, test rows)" in text
    assert text.endswith("; with all labels, use raw + logistic.")
    worse = curves(BAD)
    text = write_sentence(worse, decide(worse, 5), decide(worse, ALL))
    assert text.startswith("It does not pay here: use raw + logistic; 5 labels a class with")
    assert text.count("use ") == 1


NASTY = "<script>alert('x')</script> & \"co\""


def comparison(known: Curves) -> Comparison:
    return Comparison(
        name=NASTY,
        curves=known,
        few=decide(known, 5),
        every=decide(known, ALL),
        what={name: NASTY for name in TITLES},
        facts={"data": NASTY},
        remarks=[f"class {NASTY} has few rows"],
    )


def test_the_page_holds_everything_and_escapes_what_is_data(tmp_path: Path) -> None:
    known = curves(GOOD)
    draw_label_curves(known, tmp_path / "compare.png")
    write_html(comparison(known), tmp_path / "page.html", tmp_path / "compare.png", "a: <b>")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp;") > 5
    assert "5 labels a class with MetaMAE do what 10 [" in page
    assert 'src="data:image/png;base64,' in page
    assert "a: &lt;b&gt;" in page
    assert 'class="mark"' in page


def test_the_commonest_class_is_drawn_and_told(tmp_path: Path) -> None:
    from matplotlib.image import imread

    known = Curves(**(vars(curves(GOOD)) | {"commonest": 0.2345}))
    write_markdown(comparison(known), tmp_path / "compare.md", "compare.png")
    assert "The commonest class alone: 23.4" in (tmp_path / "compare.md").read_text()
    images = []
    for one in (known, curves(GOOD)):
        draw_label_curves(one, tmp_path / "compare.png")
        images.append(imread(tmp_path / "compare.png"))
    assert images[0].shape == images[1].shape
    assert not np.array_equal(images[0], images[1])


def test_markdown_holds_the_numbers(tmp_path: Path) -> None:
    write_markdown(comparison(curves(GOOD)), tmp_path / "compare.md", "compare.png")
    text = (tmp_path / "compare.md").read_text()
    assert "| MetaMAE | 50.0 [" in text
    assert "| on the test rows that was | right |" in text


def test_a_terminal_gets_means_that_fit_and_the_page_intervals() -> None:
    told = comparison(curves(GOOD))
    brief, full = told.brief[0], told.sections[0]
    assert brief.lines[0] == ("raw + logistic", "40.0", "60.0", "80.0", "90.0")
    assert full.lines[0][1].startswith("40.0 [")
    assert brief.header == full.header
    assert told.brief[1] == told.sections[1]


def test_cautions_stand_beside_the_answer(tmp_path: Path) -> None:
    told = replace(comparison(curves(GOOD)), cautions=["20 steps are few"])
    assert told.answer == f"{told.sentence} Caution: 20 steps are few."
    write_markdown(told, tmp_path / "compare.md", "compare.png")
    assert told.answer in (tmp_path / "compare.md").read_text()


def test_margins_end_where_the_metric_does() -> None:
    known = curves(GOOD)
    values = dict(known.values)
    for name in TITLES:
        values["validation", name] = {n: table(0.5, draws=2, spread=0.9) for n in NUMBERS}
    values["validation", "metamae"] = {n: -table(0.5, draws=2, spread=0.9) for n in NUMBERS}
    lines = dict(row[:2] for row in comparison(replace(known, values=values)).sections[1].lines)
    assert lines["gain of pretraining, validation"].endswith("[-100.0, +100.0]")


def test_an_infinite_margin_is_not_shown() -> None:
    known = curves(GOOD)
    values = dict(known.values)
    for name in TITLES:
        values["validation", name] = {n: table(0.5, draws=1) for n in NUMBERS}
    only = Curves(**(vars(known) | {"values": values}))
    lines = comparison(only).sections[1].lines
    assert ("gain of pretraining, validation", "+0.0 %", "+0.0 %") in lines


def test_numbers_are_not_called_labels_a_class() -> None:
    known = Curves(**(vars(curves(GOOD)) | {"by_class": False, "metric": "spearman"}))
    assert known.unit(5) == "5 labels"
    assert known.few == 20
    text = write_sentence(known, decide(known, 5), decide(known, ALL))
    assert "(0.70 against 0.60 with 5 labels, test rows)" in text
    assert show_labels(Interval(5, 1, math.inf), known) == "5 [1, more than all 80]"
