"""The README tells the truth: its code runs, its files exist, its numbers are the committed."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import torch

from metamae.cli.main import make_parser
from metamae.experiments.timing import read_times
from metamae.report.comparison import has_news, pair_results
from metamae.report.rows import read_results
from metamae.report.tables import make_report, summarise
from tests import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_and_everything_learns() -> None:
    """Encoder, decoder and step sizes receive gradients, and the support loss falls."""
    code = next(block for block in BLOCKS if "LatentAdapter" in block)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # our own text
    for module in ("encoder", "decoder", "adapter"):
        found = names[module]
        assert isinstance(found, torch.nn.Module)
        assert all(p.grad is not None and bool(p.grad.any()) for p in found.parameters())
    losses = names["refined"].losses.mean(1)  # type: ignore[attr-defined]
    assert losses[-1] < losses[0]


def test_files_that_are_linked_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_table_holds_the_committed_results() -> None:
    rows = read_results(ROOT / "benchmarks" / "results" / "demo-sensors.json")
    times = read_times(ROOT / "benchmarks" / "results" / "demo-sensors-times.json")
    assert {row.seed for row in rows} == {0, 1, 2}
    for cells in summarise(rows, times).lines:
        _, method, _, value, seeds, steps, milliseconds, ratio = cells
        line = f"| {method} | {value} | {seeds} | {steps} | {milliseconds} | {ratio} |"
        assert line in RESULTS


def test_it_is_read_in_minutes() -> None:
    assert len(README.split()) <= 900


def test_the_table_over_all_sets_is_that_of_the_committed_report() -> None:
    sections = make_report(read_results(ROOT / "benchmarks" / "results" / "pocket.json"))
    (table,) = (one for one in sections if one.title.startswith("Mean over "))
    assert table.title == "Mean over 6 data sets, %"
    page = (ROOT / "benchmarks" / "results" / "pocket.md").read_text()
    for line in table.lines:
        assert f"| {' | '.join(line)} |" in RESULTS
        assert f"| {' | '.join(line)} |" in page


def test_wins_and_losses_are_those_of_the_committed_rows() -> None:
    """Over six sets, by every protocol; and without digits by the published one."""
    rows = read_results(ROOT / "benchmarks" / "results" / "pocket.json")
    pairs = [pair for pair in pair_results(rows) if has_news(pair.dataset, pair.transfer)]
    assert len({pair.dataset for pair in pairs}) == 6
    for protocol in dict.fromkeys(pair.protocol for pair in pairs):
        chosen = [pair for pair in pairs if pair.protocol == protocol]
        mean = 100 * float(np.mean([pair.mean for pair in chosen]))
        verdicts = [pair.verdict for pair in chosen]
        counts = " | ".join(str(verdicts.count(name)) for name in ("win", "tie", "loss"))
        assert f"| {protocol} | {mean:+.1f} | {counts} |" in RESULTS
    others = [p.mean for p in pairs if (p.protocol, p.dataset == "digits") == ("published", False)]
    assert f"without them it is {100 * float(np.mean(others)):+.1f}." in RESULTS


def test_the_parts_of_the_method_are_those_of_the_committed_rows() -> None:
    rows = read_results(ROOT / "benchmarks" / "results" / "ablation.json")
    for title, (method, variant) in {
        "MAE (deep)": ("mae", "default"),
        "MetaMAE, the inner step without contrast": ("metamae", "inner-step"),
        "MetaMAE, the contrast with a decoder of depth 0": ("metamae", "depth-0"),
        "MetaMAE, untuned shared settings": ("metamae", "shared-settings"),
        "MetaMAE": ("metamae", "default"),
    }.items():
        cells = []
        for protocol in ("knn", "few-5"):
            place = ("digits", method, variant, protocol)
            values = [
                100 * r.value for r in rows if (r.dataset, r.method, r.variant, r.protocol) == place
            ]
            assert len(values) == 3
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
        assert f"| {title} | {' | '.join(cells)} |" in RESULTS


def test_the_cost_of_a_step_is_the_measured_one() -> None:
    results = ROOT / "benchmarks" / "results"
    paper, pocket = (
        json.loads((results / f"overhead-{name}.json").read_text())
        for name in ("cpu", "pocket-cpu")
    )
    means = {mean["variant"]: mean for mean in paper["means"]}
    for place, mean in {
        "the paper's | the paper's | compiled": means["compiled-self-float32-unrolled"],
        "the paper's | the paper's | eager": means["eager-self-float32-unrolled"],
        "the paper's | cross-attention | eager": means["eager-cross-float32-unrolled"],
        "the embedded sets' | the paper's | eager": pocket["means"][0],
    }.items():
        assert f"| {place} | {mean['ratio']:.2f} | {mean['flop_ratio']:.2f} |" in RESULTS
    kind = ("compiled", "self", "float32")
    ratios = [r["ratio"] for r in paper["rows"] if (r["mode"], r["decoder"], r["dtype"]) == kind]
    assert f"the settings differ from {min(ratios):.2f} to {max(ratios):.2f}." in RESULTS


def test_the_transformer_fits_and_scores() -> None:
    """The block as it stands, but for two steps in place of two minutes."""
    (code,) = (block for block in BLOCKS if "MetaMAEEncoder" in block)
    assert code.count("minutes=2") == 1
    x = np.random.default_rng(0).normal(size=(40, 6))
    y = (x[:, 0] > 0).astype(int)
    names = {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]}
    exec(compile(code.replace("minutes=2", "steps=2"), "README.md", "exec"), names)
    features = names["model"][0].transform(x[30:])
    assert features.shape[0] == 10
    assert np.isfinite(features).all()


def test_its_commands_are_commands() -> None:
    """Every option is known; that they do what they say is tested with the commands."""
    (block,) = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [line[:2] for line in lines] == [
        ["metamae", command] for command in ("compare", "pretrain", "embed", "export")
    ]
    for line in lines:
        assert callable(make_parser().parse_args(line[1:]).run)
