"""The figure of paired differences: every protocol a panel, every data set a line, one dot each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metamae.errors import DataError
from metamae.evaluation.protocols import PROTOCOLS
from metamae.report.comparison import Paired, pair_results, rank
from metamae.report.intervals import student_margin
from metamae.report.rows import DEFAULT, Result
from metamae.report.style import VERDICTS, styled
from metamae.report.wording import describe_pairs, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled({"axes.grid.axis": "y", "axes.spines.left": False})
def draw_differences(
    rows: Sequence[Result], path: Path, *, method: str = "metamae", against: str = "mae"
) -> None:
    r"""Draw what a method gains on another, seed by seed: mean difference and its 95 % interval.

    The interval is Student's, :math:`\bar d \pm t_{.975, n-1}\, s / \sqrt{n}` over ``n`` seeds;
    one seed has none. A dot is blue or orange where the mean differs from zero by more than one
    standard error (``win`` and ``loss`` of the tables), and grey otherwise. Correlations are
    drawn in hundredths.

    Args:
        rows: The results; only those without overrides are drawn.
        path: Picture to write; the format is that of its ending.
        method: The first method.
        against: What it is compared with.

    Raises:
        DataError: no data set where both methods have results of the same seeds.
    """
    pairs = [p for p in pair_results(rows, method, against) if p.variant == DEFAULT]
    if not pairs:
        raise DataError(
            f"expected results of {method} and of {against} on the same data and seeds, got none; "
            "name others with --method and --against"
        )
    from matplotlib.figure import Figure  # takes a second: commands start without it

    protocols = sorted({p.protocol for p in pairs}, key=lambda name: rank(PROTOCOLS, name))
    placed = list(zip(pairs, describe_pairs(pairs), strict=True))
    places = list(dict.fromkeys(place for _, place in placed))
    height = 0.42 * len(places) + 1.5
    figure = Figure(figsize=(2.2 + 2.3 * len(protocols), height))
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for axis, protocol in zip(panels, protocols, strict=True):
        chosen = [(pair, place) for pair, place in placed if pair.protocol == protocol]
        _draw_panel(axis, chosen, places)
        axis.set_title(protocol)
    panels[0].set_yticks(range(len(places)), places)
    panels[0].invert_yaxis()
    names = f"{label(method, DEFAULT)} minus {label(against, DEFAULT)}"
    figure.supxlabel(f"{names}, points (95 % intervals over seeds)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def interval(pair: Paired) -> float:
    """Half the width of the 95 % interval of the mean difference; 0 from one seed.

    Example:
        >>> from metamae.report.comparison import Paired
        >>> from metamae.report.differences import interval
        >>> place = {"dataset": "a", "transfer": "a", "variant": "default", "protocol": "knn"}
        >>> round(interval(Paired(**place, metric="accuracy", differences=(0.0, 0.1))), 3)
        0.635
    """
    return 0.0 if pair.error is None else student_margin(pair.error, len(pair.differences))


def _draw_panel(axis: Axes, pairs: Sequence[tuple[Paired, str]], places: Sequence[str]) -> None:
    axis.axvline(0, color="#222222", lw=1)
    widest = max(abs(100 * p.mean) for p, _ in pairs)
    limit = 1.25 * max(widest, 2.0)
    for pair, place in pairs:
        line = places.index(place)
        colour, mean, half = VERDICTS[pair.verdict], 100 * pair.mean, 100 * interval(pair)
        axis.plot([mean - half, mean + half], [line, line], color=colour, lw=2.5, alpha=0.5)
        axis.plot(mean, line, "o", color=colour, ms=9)
    # Means are what is looked at: an interval of three seeds may leave the panel.
    axis.set_xlim(-limit, limit)
    axis.tick_params(length=0)
