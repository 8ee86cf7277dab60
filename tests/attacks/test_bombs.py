"""Small files that become large, long or deep: a named error before memory or an hour is gone."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metamae.data.formats import limits
from metamae.errors import MetamaeError
from metamae.files import parse_yaml, read_json
from tests.attacks.harness import COUNTS, run_child
from tests.metamae.data.making import put
from tests.metamae.data.packing import encode_picture, traffic

MIB = 1 << 20
ZEROS = gzip.compress(bytes(64 * MIB), 9)
"""64 MiB in 64 KiB."""


def gz_bomb(folder: Path) -> str:
    (folder / "HIGGS.csv.gz").write_bytes(ZEROS * 20)
    return "higgs"


def one_line(folder: Path) -> str:
    put(folder / "HIGGS.csv.gz", b"1," * 20 * MIB)
    return "higgs"


def tar_of(content: bytes, name: str, size: int | None = None) -> bytes:
    """One member that says how large it is, and what follows its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content


def tar_bomb(folder: Path) -> str:
    head = tar_of(b"", "remote_homology/remote_homology_train.json", 20 * 64 * MIB)
    (folder / "remote_homology.tar.gz").write_bytes(gzip.compress(head) + ZEROS * 20)
    return "scop"


def long_name(folder: Path) -> str:
    """The name of a member that is 1.25 GiB long."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 20 * 64 * MIB
    head = info.tobuf(tarfile.GNU_FORMAT)
    (folder / "remote_homology.tar.gz").write_bytes(gzip.compress(head) + ZEROS * 20)
    return "scop"


def sparse_member(folder: Path) -> str:
    info = tarfile.TarInfo("remote_homology/remote_homology_train.json")
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"777777777777"  # the size it claims, all of it a hole
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    (folder / "remote_homology.tar.gz").write_bytes(gzip.compress(bytes(head) + bytes(1024)))
    return "scop"


def backward_member(folder: Path) -> str:
    """A negative size, which Python's own reader of some versions follows for ever."""
    head = bytearray(tar_of(b"", "x", 0)[:512])
    head[124:136] = b"\xff" * 11 + b"\x00"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    (folder / "remote_homology.tar.gz").write_bytes(gzip.compress(bytes(head) * 3 + bytes(1024)))
    return "scop"


def zip_bomb(folder: Path) -> str:
    """Many members over one content, each of them 64 MiB: what Python calls overlapped."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(64 * MIB)) + packer.flush()
    crc = zlib.crc32(bytes(64 * MIB))
    name = b"genomics_ood/before_2011_in_tr.txt"
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(packed), 64 * MIB, len(name), 0)
    local = b"PK\x03\x04" + fields + name + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    directory = (entry + name) * 2000
    end = struct.pack("<HHHHIIH", 0, 0, 2000, 2000, len(directory), len(local), 0)
    path = folder / "genomics_ood.zip"
    path.write_bytes(local + directory + b"PK\x05\x06" + end)
    return "genomics"


def large_picture(folder: Path) -> str:
    """A picture of 300 MiB of nothing in an archive."""
    members = traffic()
    name = next(name for name in members if name.endswith(".ppm"))
    put(folder / "GTSRB_Final_Training_Images.zip", members | {name: bytes(300 * MIB)})
    return "traffic_sign"


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def picture_of(width: int, height: int) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        name = next(name for name in traffic() if name.endswith(".ppm"))
        put(folder / "GTSRB_Final_Training_Images.zip", traffic() | {name: png(width, height)})
        return "traffic_sign"

    return make


def tiff_that_claims(folder: Path) -> str:
    """A header of 200,000 x 200,000 pixels in 13 bands, and nothing behind it."""
    entries = [(256, 200_000), (257, 200_000), (258, 16), (259, 1), (262, 1), (273, 8)]
    entries += [(277, 13), (278, 200_000), (279, 8)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    content = b"II*\0" + struct.pack("<I", 16) + bytes(8)
    content += struct.pack("<H", len(entries)) + body + bytes(4)
    put(folder / "EuroSATallBands.zip", {f"ds/Forest_{n}.tif": content for n in range(4)})
    return "eurosat"


def deep_json(folder: Path) -> str:
    record = b'[{"primary": "ACD", "fold_label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
    files = {f"remote_homology/remote_homology_{part}.json": record for part in ("train", "valid")}
    put(folder / "remote_homology.tar.gz", files)
    return "scop"


def long_record(folder: Path) -> str:
    record = b'[{"primary": "' + b"A" * 100 * MIB + b'", "fold_label": 1}]'
    files = {f"remote_homology/remote_homology_{part}.json": record for part in ("train", "valid")}
    put(folder / "remote_homology.tar.gz", files)
    return "scop"


def many_cells(folder: Path) -> str:
    table = b"seq\tlabel\n" + b"\t" * 50 * MIB
    names = ("before_2011_in_tr", "between_2011-2016_in_val")
    put(folder / "genomics_ood.zip", {f"genomics_ood/{name}.txt": table for name in names})
    return "genomics"


def matlab_bomb(folder: Path) -> str:
    members = {"jpg/image_00001.jpg": encode_small(), "imagelabels.mat": bytes(2 * MIB)}
    put(folder / "102flowers.tgz", members)
    return "vgg_flowers"


def encode_small() -> bytes:
    from PIL import Image

    return encode_picture(Image.new("RGB", (4, 4)), "JPEG")


BOMBS: dict[str, Callable[[Path], str]] = {
    "gzip of zeros": gz_bomb,
    "one endless line": one_line,
    "tar.gz of zeros": tar_bomb,
    "a name of a gigabyte": long_name,
    "a member of holes": sparse_member,
    "a member of negative size": backward_member,
    "zip of one content many times": zip_bomb,
    "a picture file of zeros": large_picture,
    "a picture of 10 gigapixels": picture_of(100_000, 100_000),
    "a picture of 100 megapixels": picture_of(10_000, 10_000),
    "a TIFF of terabytes": tiff_that_claims,
    "JSON nested deeply": deep_json,
    "a record without end": long_record,
    "a line of cells": many_cells,
    "a long MATLAB file": matlab_bomb,
}

SAMPLE = ("tar.gz of zeros", "zip of one content many times", "a picture of 10 gigapixels")

PREPARE = """
import resource, sys, time
from pathlib import Path
from metamae.data.preparing.prepare import prepare
from metamae.data.sources import get_source
from metamae.errors import MetamaeError
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
start = time.monotonic()
try:
    prepare(get_source(sys.argv[1]), Path(sys.argv[2]), partial=True)
    print("prepared")
except MetamaeError as fault:
    assert chr(10) not in str(fault)
    # Not ru_maxrss, which begins with the size of the process that started this one.
    (line,) = [x for x in open("/proc/self/status") if x.startswith("VmHWM")]
    peak = int(line.split()[1]) >> 10
    print(round(time.monotonic() - start), peak, fault)
left = Path(sys.argv[2]) / "prepared"
assert not left.exists() or not list(left.iterdir())
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused(bomb: str, tmp_path: Path, whole: bool) -> None:
    """In 60 seconds and 3 GiB, of which the libraries take a half."""
    if not whole and bomb not in SAMPLE:
        pytest.skip("one of a sample: add --all to run it")
    name = BOMBS[bomb](tmp_path)
    done = run_child(PREPARE, name, str(tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr[-800:]
    seconds, peak, message = done.stdout.split(maxsplit=2)
    assert int(seconds) < 60
    assert int(peak) < 3000
    assert message.startswith("expected")
    COUNTS["archive bombs"]["refused"] += 1


def test_the_message_has_the_limit(tmp_path: Path) -> None:
    with pytest.raises(MetamaeError, match=r"at most 200 times its size \(or 1024 MiB\), got"):
        limits.check_growth(2 << 30, 1000, "x.zip")
    limits.check_growth(1 << 30, 1000, "x.zip")
    limits.check_growth(199 << 30, 1 << 30, "x.zip")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)
YAML = {
    "aliases of aliases": LAUGHS,
    "merges of merges": MERGES,
    "in itself": "&a [*a]",
    "nested deeply": "[" * 100_000,
    "nested and closed": "[" * 500 + "]" * 500,
    "maps in maps": "{a: " * 100_000,
    "no date": "2001-99-99",
    "no number": "!!int x",
    "no truth": "!!bool perhaps",
    "a key that is a list": "? [1]\n: 2",
    "a key twice": "a: 1\na: 2",
    "a tag that runs": "!!python/object/apply:os.system ['exit 1']",
    "no text": "\x00\x01",
    "a tab": "a:\n\tb: 1",
    "base 60": "!!float '1:1:x'",
    "a float that is none": "!!float '.'",
    "a time": "!!timestamp x",
    "pairs": "!!pairs [1]",
    "a merge of a text": "<<: x",
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_grows_or_makes_no_sense(case: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{3,2000}$"):
        parse_yaml(YAML[case])
    COUNTS["YAML bombs"]["refused"] += 1


def test_aliases_that_help_are_read() -> None:
    assert parse_yaml("a: &a [1]\nb: *a\nc: {<<: {x: 1}, y: 2}") == {
        "a": [1],
        "b": [1],
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000, "[1e999]", "[NaN]"]
)
def test_json_that_is_deep_or_long(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]{3,2000}$"):
        read_json(tmp_path / "x.json")
    COUNTS["JSON bombs"]["refused"] += 1


def test_a_checkpoint_is_never_unpacked(tmp_path: Path) -> None:
    """torch stores members as they are; a packed one could be of any size."""
    from metamae.training.checkpoint import Checkpoint

    path = tmp_path / "checkpoint.pt"
    torch.save({"a": torch.zeros(10)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info) + bytes(64 * MIB))
    with pytest.raises(MetamaeError, match="is packed, or of another size"):
        Checkpoint.load(path)
    COUNTS["archive bombs"]["refused"] += 1
