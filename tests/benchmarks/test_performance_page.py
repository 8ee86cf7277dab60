"""The page of measurements shows the committed numbers."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from tests import ROOT

MODES = ("eager", "compiled")
COLUMNS = ("mae", "unrolled", "checkpointed", "chunked")


def test_the_memory_table_holds_the_committed_rows() -> None:
    page = (ROOT / "docs" / "measurements.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "policy-memory.json").read_text())
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if "%) |" in line]
    assert len(table) == len(found["rows"])
    for cells, row in zip(table, found["rows"], strict=True):
        assert cells[0].lower() == row["setting"].removeprefix("paper/")
        assert cells[1:5] == [f"{row['peak_mib'][name]:.0f}" for name in COLUMNS]
        assert cells[5:] == [
            f"{row[kind]['faults']:,.0f} ({100 * row[kind]['system_share']:.1f} %)"
            for kind in ("returned", "kept")
        ]


def test_the_table_of_waiting_threads_holds_the_committed_rows() -> None:
    times = {
        (r["spin"], r["setting"], r["load"]): r["ms"] for r in results("waiting-threads")["rows"]
    }
    columns = [(s, load) for s in ("paper/pamap2", "pocket/sensors") for load in ("idle", "busy")]
    page = (ROOT / "docs" / "measurements.md").read_text()
    for spin in dict.fromkeys(spin for spin, _, _ in times):
        cells = " | ".join(f"{times[spin, setting, load]:.0f}" for setting, load in columns)
        assert f"| {spin} | {cells} |" in page


def test_the_tables_of_a_step_hold_the_committed_rows() -> None:
    """Compiled steps setting by setting, and the means of all variants."""
    page = (ROOT / "docs" / "measurements.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "overhead-cpu.json").read_text())
    compiled = [row for row in found["rows"] if name_of(row) == "compiled-self-float32-unrolled"]
    assert len(compiled) == 9
    for row in compiled:
        name = row["setting"].removeprefix("paper/")
        times = f"{row['mae_ms']:.0f} | {row['metamae_ms']:.0f} | {row['ratio']:.2f}"
        straight = f"{row['straight_ms']:.0f} | {row['speedup']:.2f}"
        line = f"| {name} | {row['batch']} | {times} | {row['flop_ratio']:.2f} | {straight} |"
        assert line in page
    for mean in found["means"]:
        faster = f"{mean['speedup']:.2f}" if "speedup" in mean else "-"
        numbers = f"{mean['ratio']:.2f} | {mean['flop_ratio']:.2f} | {mean['peak_ratio']:.2f}"
        assert f"| `{mean['variant']}` | {mean['settings']} | {numbers} | {faster} |" in page


def prose() -> str:
    return " ".join((ROOT / "docs" / "measurements.md").read_text().split())


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_what_is_said_of_the_tables_follows_from_their_rows() -> None:
    """Each side's faster mode, and the bound that MAE's own rate of products sets."""
    rows = {(r["setting"][6:], name_of(r)): r for r in results("overhead-cpu")["rows"]}
    settings = sorted({setting for setting, _ in rows})
    fastest = [
        [
            min(rows[s, f"{mode}-self-float32-unrolled"][f"{side}_ms"] for mode in MODES)
            for side in ("metamae", "mae")
        ]
        for s in settings
    ]
    assert f"the mean is {statistics.mean(a / b for a, b in fastest):.2f}." in prose()
    chosen = [rows[s, "compiled-self-float32-unrolled"] for s in ("pamap2", "eurosat")]
    bound = " and ".join(f"{row['mae_ms'] * row['flop_ratio']:.0f}" for row in chosen)
    taken = " and ".join(f"{row['metamae_ms']:.0f}" for row in chosen)
    aim = " and ".join(f"{row['straight_ms'] / 1.5:.0f}" for row in chosen)
    assert f"products alone take {bound} ms; it takes {taken}; 1.5 would be {aim}." in prose()


def test_what_is_said_of_the_variants_follows_from_their_means() -> None:
    found = results("overhead-cpu")
    means = {mean["variant"]: mean for mean in found["means"]}
    eager, compiled = (means[f"{mode}-cross-float32-unrolled"]["ratio"] for mode in MODES)
    assert f"costs {eager:.2f} times its MAE on average, compiled {compiled:.2f} " in prose()
    peaks = [means[f"{mode}-self-float32-unrolled"]["peak_ratio"] for mode in MODES]
    assert f"{peaks[0]:.2f} times MAE's peak eagerly and {peaks[1]:.2f} compiled" in prose()
    chunked = means["eager-self-float32-chunked"]
    assert f"{chunked['peak_ratio']:.2f}, for {chunked['ratio']:.2f} times MAE's time" in prose()
    rows = {(r["setting"][6:], name_of(r)): r for r in found["rows"]}
    names = ("pamap2", "eurosat", "librispeech")
    low = [rows[name, "eager-self-bfloat16-unrolled"]["speedup"] for name in names]
    assert f"eagerly: {low[0]:.2f}, {low[1]:.2f} and {low[2]:.2f} on PAMAP2" in prose()
    low = [rows[name, "compiled-self-bfloat16-unrolled"]["speedup"] for name in names]
    compiled_too = f"{low[0]:.2f} (PAMAP2), {low[1]:.2f} (EuroSAT), {low[2]:.2f} (LibriSpeech)"
    assert f"Compiled too it is {compiled_too}." in prose()
    above = {
        s: r["ratio"] - r["flop_ratio"]
        for (s, v), r in rows.items()
        if v == "compiled-self-float32-unrolled"
    }
    assert max(above, key=lambda setting: above[setting]) == "librispeech"


def name_of(row: dict[str, Any]) -> str:
    return "-".join(row[key] for key in ("mode", "decoder", "dtype", "policy"))


@pytest.mark.parametrize("method", ["mae", "metamae"])
@pytest.mark.parametrize(("decoder", "file"), [("self", "pocket"), ("cross", "cross")])
def test_the_quality_of_decoders_is_the_mean_over_nine_sets(
    method: str, decoder: str, file: str
) -> None:
    rows = [r for r in results(file) if r["method"] == method and r["dataset"] == r["transfer"]]
    cells = []
    for protocol in ("published", "tuned", "knn", "few-5"):
        means = []
        for seed in range(3):
            values = [
                100 * r["value"] for r in rows if (r["seed"], r["protocol"]) == (seed, protocol)
            ]
            assert len(values) == 9
            means.append(statistics.mean(values))
        cells.append(f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}")
    label = {"mae": "MAE", "metamae": "MetaMAE"}[method]
    assert f"| {label} | {decoder} | {' | '.join(cells)} |" in prose()


def test_the_words_on_accuracy_against_time_are_those_of_the_summary() -> None:
    lines = {x["dataset"]: x for x in results("wallclock-cpu")["summary"] if x["clock"] == "cpu"}
    assert {x["seeds"] for x in lines.values()} == {3}
    one, other, last = lines["sensors"], lines["digits"], lines["tabular"]
    best = f"best mean, {one['mae_best']:.1f} % after {one['mae_best_steps']} steps"
    assert f"{best}, is passed by MetaMAE after {one['metamae_passes_s']:.1f} seconds" in prose()
    assert f"it ends at {end(one, 'metamae')} where MAE has fallen to {end(one, 'mae')}." in prose()
    assert (other["metamae_passes_s"], other["mae_best_steps"]) == (None, 0)
    assert f"untrained encoder's {other['mae_best']:.1f} %" in prose()
    ends = f"both end lower, MetaMAE at {end(other, 'metamae')} and MAE at {end(other, 'mae')}."
    assert ends in prose()
    assert last["mae_best_steps"] == 0
    passes = (
        f"{last['mae_best']:.1f} %, too; MetaMAE passes it after {last['metamae_passes_s']:.1f}"
    )
    assert passes in prose()
    assert f"ends at {end(last, 'metamae')}, above at " in prose()
    assert f"where MAE has fallen to {end(last, 'mae')}." in prose()
    assert (one["points_above"], one["points_from_there"]) == (2, 4)
    assert "two of its four points are above" in prose()
    assert (last["points_above"], last["points_from_there"]) == (3, 7)
    assert "above at three of seven points from there on" in prose()


def end(line: dict[str, Any], method: str) -> str:
    return f"{line[f'{method}_last']:.1f} ± {line[f'{method}_last_spread']:.1f}"


def test_the_least_headroom_of_a_reader_is_named() -> None:
    rows = results("input-cpu")["rows"]
    least = min(rows, key=lambda row: row["headroom"])
    name = least["setting"].split("/")[-1] if "setting" in least else least["dataset"]
    assert f"readers of all {len(rows)} sets deliver from {least['headroom']} ({name})" in prose()


def test_the_quality_of_decoding_fewer_tokens_is_that_of_the_rows() -> None:
    base = {
        (r["dataset"], r["method"], r["seed"], r["protocol"]): r["value"]
        for r in results("cross")
        if r["dataset"] == r["transfer"]
    }
    page = (ROOT / "docs" / "measurements.md").read_text()
    for method, name in (("mae", "MAE"), ("metamae", "MetaMAE")):
        for variant, share in (("cross-50", "0.5"), ("cross-25", "0.25")):
            cells = []
            for protocol in ("tuned", "knn", "few-5"):
                chosen = [
                    100 * (r["value"] - base[r["dataset"], method, r["seed"], protocol])
                    for r in results("query_fraction")
                    if (r["method"], r["variant"], r["protocol"]) == (method, variant, protocol)
                ]
                error = statistics.stdev(chosen) / len(chosen) ** 0.5
                cells.append(f"{statistics.mean(chosen):+.1f} ± {error:.1f}")
            assert f"| {name} | {share} | {len(chosen)} | {' | '.join(cells)} |" in page
