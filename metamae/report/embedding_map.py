"""A map of features: examples in the plane where they differ most, coloured by their labels."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from metamae.data.dataset import Array, Task
from metamae.errors import DataError
from metamae.evaluation.features import Features
from metamae.files import replacing
from metamae.report.style import SERIES, styled

MOST_POINTS = 2000
"""Examples that are drawn, spread evenly."""
MOST_CLASSES = 20
"""Classes that get a colour; more are drawn in one."""


@styled()
def draw_map(features: Features, path: Path, *, seed: int = 0) -> None:
    """Draw test rows in the plane of their first two principal components; by UMAP too, if there.

    Args:
        features: Features and labels; those of tokens are averaged over an example, without labels.
        path: Picture to write; the format is that of its ending.
        seed: Seed of UMAP.

    Raises:
        DataError: fewer than three test rows.
    """
    test = np.asarray(features.test.numpy(), np.float64)
    test = test.mean(1) if test.ndim == 3 else test
    rows = np.linspace(0, len(test) - 1, min(len(test), MOST_POINTS)).astype(int)
    points, shares = principal_plane(test[rows])
    views = [(points, tuple(f"component {n + 1}: {100 * s:.0f} %" for n, s in enumerate(shares)))]
    if find_spec("umap") is not None:
        scale = test.std(0)
        placed = (
            import_module("umap")
            .UMAP(random_state=seed)
            .fit_transform(test[rows] / np.where(scale > 0, scale, 1))
        )
        views.append((placed, ("UMAP 1", "UMAP 2")))
    from matplotlib.figure import Figure  # takes a second: commands start without it

    figure = Figure(figsize=(6.5 * len(views) + 2.5, 6))
    for axis, (points, names) in zip(
        figure.subplots(1, len(views), squeeze=False)[0], views, strict=True
    ):
        for number, (name, chosen) in enumerate(groups_of(features, rows).items()):
            colour = SERIES[number % len(SERIES)]
            marker = "o^sDvPX*"[number // len(SERIES) % 8]
            style = {"s": 16, "alpha": 0.65, "lw": 0}
            axis.scatter(*points[chosen].T, color=colour, marker=marker, label=name, **style)
        axis.set_xlabel(names[0])
        axis.set_ylabel(names[1])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(labels):
        legend = figure.legend(handles, labels, loc="outside right upper", markerscale=2.5)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)  # type: ignore[union-attr]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))


def principal_plane(rows: Array) -> tuple[Array, Array]:
    """Coordinates ``(N, 2)`` along the first two principal components, and their shares ``(2,)``.

    Features are taken as they are: what varies little is little on the map. A component's sign is
    that which makes its largest weight positive.

    Raises:
        DataError: fewer than three rows, or fewer than two features.

    Example:
        >>> import numpy as np
        >>> from metamae.report.embedding_map import principal_plane
        >>> points, shares = principal_plane(
        ...     np.array([[3.0, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]])
        ... )
        >>> points.round(3).tolist(), shares.round(3).tolist()
        ([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0.9, 0.1])
    """
    if rows.ndim != 2 or len(rows) < 3 or rows.shape[1] < 2:
        raise DataError(
            f"expected three rows or more of two features or more for a map, got {rows.shape}"
        )
    centred = rows - rows.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    plane = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    total = float((sizes**2).sum())
    return centred @ plane.T, sizes[:2] ** 2 / (total or 1.0)


def groups_of(features: Features, rows: Array) -> dict[str, Array]:
    """Names of classes to which of ``rows`` are of them; one group where there are none."""
    task: Task = features.task
    labels = np.asarray(features.test_labels)
    plain = task.kind in ("classification", "binary") and len(task.classes) <= MOST_CLASSES
    if not plain or labels.ndim != 1:
        return {"": np.arange(len(rows))}
    found = {
        name: np.flatnonzero(labels[rows] == number) for number, name in enumerate(task.classes)
    }
    return {name: chosen for name, chosen in found.items() if len(chosen)}
