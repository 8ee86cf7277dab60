"""EuroSAT and WaferMap: GeoTIFF, pickled tables and MATLAB files give the same images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from metamae.data.dataset import Array
from metamae.data.preparing.splits import shuffled
from metamae.data.sources import eurosat
from metamae.data.sources.wafers import failure_name, picture
from tests.metamae.data.making import made, put, skipping
from tests.metamae.data.packing import old_table

# --- EuroSAT ---------------------------------------------------------------------------------


def patch(number: int) -> Array:
    """64 x 64 x 13; a pixel tells image, row, column and band."""
    y, x, band = np.ogrid[:64, :64, :13]
    return (number * 600 + y * 8 + x // 8 + band * 40).astype(np.uint16)


def tif(image: Array) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, image, planarconfig="contig", photometric="minisblack")
    return file.getvalue()


def eurosat_members(count: int = 10) -> dict[str, bytes]:
    root = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    return {
        f"{root}/{name}/{name}_{n}.tif": tif(patch(10 * label + n))
        for label, name in enumerate(eurosat.CLASSES)
        for n in range(count)
    }


def normalised(image: Array) -> Array:
    mean, std = (np.array(v)[:, None, None] for v in (eurosat.MEAN, eurosat.STD))
    result: Array = (image.transpose(2, 0, 1) - mean) / std
    return result


def test_eurosat_from_its_archive(tmp_path: Path) -> None:
    members = eurosat_members()
    put(tmp_path / "zip/EuroSATallBands.zip", dict(reversed(members.items())))
    put(tmp_path / "folder", members)
    packed, unpacked = (made("eurosat", tmp_path / kind).dataset() for kind in ("zip", "folder"))
    order = shuffled(100)
    for part, rows in (("pretrain", order[:81]), ("train", order[90:99]), ("test", order[99:])):
        for data in (packed, unpacked):
            found = data.need(part)
            assert len(found) == len(rows)
            image = found.batch([0])["image"][0].numpy()
            np.testing.assert_allclose(image, normalised(patch(rows[0])), rtol=1e-4, atol=1e-3)
            if part != "pretrain":
                assert found.labels.tolist() == (rows // 10).tolist()


def test_eurosat_from_the_benchmarks_tables(tmp_path: Path) -> None:
    """They are shuffled already: cut 90/10 in their order."""
    for name, rows in (("pretrain", range(20)), ("transfer", range(30, 50))):
        columns = {
            "filename": [f"{i}.tif" for i in rows],
            "label": [i % 10 for i in rows],
            "sentinel2": [patch(i).astype(np.float32) for i in rows],
        }
        put(tmp_path / "satellite_images" / f"{name}.pkl", old_table(columns))
    data = made("eurosat", tmp_path).dataset()
    assert [len(data.need(part)) for part in ("pretrain", "train", "test")] == [18, 18, 2]
    assert data.need("test").labels.tolist() == [8, 9]
    image = data.need("train").batch([3])["image"][0].numpy()
    np.testing.assert_allclose(image, normalised(patch(33)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["cut", "small", "class"])
def test_one_damaged_image_is_named_or_left_out(kind: str, tmp_path: Path) -> None:
    members = eurosat_members(11)
    name = next(name for name in members if name.endswith("River_4.tif"))
    content = members.pop(name)
    if kind == "class":
        name = name.replace("River_4", "Rivet_4")
    members[name] = {"cut": content[:900], "small": tif(patch(1)[:32]), "class": content}[kind]
    put(tmp_path / "EuroSATallBands.zip", members)
    done, skipped = skipping("eurosat", tmp_path, f"{name}: .*--on-error skip")
    assert skipped == [name]
    assert done.manifest["arrays"]["images"]["shape"] == [109, 13, 64, 64]


# --- WaferMap --------------------------------------------------------------------------------

KINDS = ["none", "Random", "Donut", "Scratch", "Center", "Loc", "Edge-Loc", "Edge-Ring"]
KINDS += ["Near-full"]


def wafer(number: int) -> Array:
    """A map of some size; die values from the number."""
    rows, columns = 20 + number % 7, 25 + number % 5
    y, x = np.mgrid[:rows, :columns]
    return ((y * (number + 1) + x) % 3).astype(np.uint8)


def wafers() -> list[tuple[Array, str | None]]:
    """Twenty without a label among ninety with one."""
    return [(wafer(i), KINDS[i % 9] if i % 11 > 1 else None) for i in range(110)]


def pixels(dies: Array) -> Array:
    """Independent of the reader: through a colour image, as the benchmark does it."""
    colour = np.stack([(dies * 127.5).astype(np.uint8)] * 3, -1)
    small = Picture.fromarray(colour).resize((32, 32), Picture.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1) / 255


def check_wafers(folder: Path) -> None:
    data = made("wafermap", folder).dataset()
    given = wafers()
    unlabelled = [dies for dies, kind in given if kind is None]
    labelled = [(dies, kind) for dies, kind in given if kind is not None]
    pretrain = data.need("pretrain")
    assert len(pretrain) == len(unlabelled) - len(unlabelled) // 10
    order = shuffled(len(unlabelled))
    for place in (0, 5):
        image = pretrain.batch([place])["image"][0].numpy()
        np.testing.assert_allclose(image, pixels(unlabelled[order[place]]), atol=1e-6)
    order = shuffled(len(labelled))
    cut = len(labelled) - len(labelled) // 10
    for part, rows in (("train", order[:cut]), ("test", order[cut:])):
        found = data.need(part)
        assert found.labels.tolist() == [KINDS.index(labelled[row][1]) for row in rows]
        image = found.batch([1])["image"][0].numpy()
        np.testing.assert_allclose(image, pixels(labelled[rows[1]][0]), atol=1e-6)


def matlab(path: Path) -> Path:
    """A MATLAB 7.3 file: HDF5 with cells of references, and arrays with columns together."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        cells = file.create_group("#refs#")

        def refer(content: Any, kind: bytes, name: str, empty: bool = False) -> Any:
            cell = cells.create_dataset(name, data=content)
            cell.attrs["MATLAB_class"] = np.bytes_(kind)
            if empty:
                cell.attrs["MATLAB_empty"] = np.uint8(1)
            return cell.ref

        columns: dict[str, list[Any]] = {"waferMap": [], "failureType": []}
        for i, (dies, kind) in enumerate(wafers()):
            columns["waferMap"].append(refer(dies.T, b"uint8", f"m{i}"))
            if kind is None:
                none = refer(np.zeros(2, np.uint64), b"cell", f"f{i}", empty=True)
                columns["failureType"].append(none)
                continue
            codes = np.array([[ord(letter)] for letter in kind], np.uint16)
            inner = refer(codes, b"char", f"t{i}")
            nested = np.array([[inner]], dtype=h5py.ref_dtype)
            columns["failureType"].append(refer(nested, b"cell", f"f{i}"))
        for name, references in columns.items():
            values = np.array(references, dtype=h5py.ref_dtype)[:, None]
            file.create_dataset(f"data/{name}", data=values)
    return path


def test_wafers_from_the_matlab_file(tmp_path: Path) -> None:
    path = matlab(tmp_path / "b/MIR-WM811K/MATLAB/WM811K.mat")
    put(tmp_path / "a/MIR-WM811K.zip", {"MIR-WM811K/MATLAB/WM811K.mat": path.read_bytes()})
    check_wafers(tmp_path / "a")
    check_wafers(tmp_path / "b")


def test_wafers_from_one_table(tmp_path: Path) -> None:
    """Labels nested in arrays, and empty arrays for wafers without one."""
    maps, kinds = zip(*wafers(), strict=True)
    nested = [
        np.zeros((0, 0)) if kind is None else np.array([[kind]], dtype=object) for kind in kinds
    ]
    table = {"waferMap": list(maps), "failureType": nested, "dieSize": [1.0] * len(maps)}
    put(tmp_path / "LSWMD.pkl", old_table(table))
    check_wafers(tmp_path)


def benchmark_rows(labelled: bool) -> list[tuple[Array, str]]:
    """Rows of one of the benchmark's tables: pixels as it makes them of a map, and a failure."""
    return [
        (np.repeat(dies[:, :, None], 3, axis=-1) * 127.5, (kind or "unlabeled").lower())
        for dies, kind in wafers()
        if (kind is not None) == labelled
    ]


@pytest.mark.parametrize("writer", ["pandas", "old"])
def test_wafers_from_the_benchmarks_tables(writer: str, tmp_path: Path) -> None:
    """Columns ``failureType`` and ``pixels``; whole numbers 0, 127 and 255 in three channels."""
    for name in ("labeled", "unlabeled"):
        rows = benchmark_rows(name == "labeled")
        table = {
            "failureType": [kind for _, kind in rows],
            "pixels": [pixels.astype(int) for pixels, _ in rows],
        }
        path = tmp_path / "semiconductors" / f"{name}.pkl"
        if writer == "old":
            put(path, old_table(table))
            continue
        pandas = pytest.importorskip("pandas")
        path.parent.mkdir(exist_ok=True)
        frame = pandas.DataFrame(table).astype(object)
        frame.columns = frame.columns.astype(object)
        frame.to_pickle(path)
    check_wafers(tmp_path)


def test_the_benchmarks_tables_of_an_older_pandas(tmp_path: Path) -> None:
    """Twelve labelled and eight unlabelled wafers, as pandas 1.5.3 wrote them."""
    source = Path(__file__).parent / "dabs_wafers" / "pandas-1.5.3"
    for table in source.iterdir():
        put(tmp_path / "wafer_map" / table.name, table.read_bytes())
    data = made("wafermap", tmp_path).dataset()
    labels = [0, 1, 7, 8, 5, 0] * 2
    order = shuffled(12)
    assert data.need("train").labels.tolist() == [labels[row] for row in order[:11]]
    numbers = [0, 1, 2, 3, 8, 9]
    image = data.need("test").batch([0])["image"][0].numpy()
    number = (numbers + [10 + n for n in numbers])[order[11]]
    y, x = np.mgrid[: 8 + number % 3, : 9 + number % 2]
    dies = ((y * (number + 1) + x) % 3).astype(np.uint8)
    np.testing.assert_allclose(image, pixels(dies), atol=1e-6)


@pytest.mark.parametrize("value", ["Edge-Ring", b"Edge-Ring", np.array([[b"Edge-Ring"]])])
def test_a_failure_may_be_bytes(value: Any) -> None:
    assert failure_name(value) == "edge-ring"


@pytest.mark.parametrize(
    ("dies", "kind", "expected"),
    [
        (np.full((3, 3), 7, np.uint8), "none", r"a map \(H, W\) of 0, 1 and 2"),
        (np.zeros((0, 3), np.uint8), "none", r"a map \(H, W\) of 0, 1 and 2"),
        (np.zeros((3, 3), np.uint8), "Spiral", "a failure among .*, got 'spiral'"),
    ],
)
def test_one_odd_wafer_is_named_or_left_out(
    dies: Array, kind: str, expected: str, tmp_path: Path
) -> None:
    maps, kinds = map(list, zip(*wafers(), strict=True))
    maps[30], kinds[30] = dies, kind
    put(tmp_path / "LSWMD.pkl", old_table({"waferMap": maps, "failureType": kinds}))
    message = f"wafer 30 of LSWMD.pkl: expected {expected}"
    assert skipping("wafermap", tmp_path, message)[1] == ["wafer 30 of LSWMD.pkl"]


def test_pixels_that_are_ready_are_taken_as_they_are() -> None:
    ready = np.stack([wafer(3) * 127] * 3, -1)
    expected = Picture.fromarray(ready[..., 0]).resize((32, 32), Picture.Resampling.BILINEAR)
    assert np.array_equal(picture(ready)[0], np.asarray(expected))
