"""Pickles made to crash, to fill memory or to be misread; each kind in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from metamae import DataError
from metamae.data.formats.pickles import plain_array, read_batch, read_frame
from metamae.data.formats.unpickling import unpickle
from tests.attacks.harness import COUNTS, run_child
from tests.metamae.data.packing import batch, old_table

PICKLED = Path(__file__).parents[1] / "metamae" / "data" / "formats" / "pickled"

NUMPY = b"cnumpy.core.multiarray\n_reconstruct\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def array(shape: bytes, dtype: bytes, raw: bytes, *, flags: bytes = b"\x89") -> bytes:
    """Instructions for an array with whatever state."""
    start = NUMPY + b"(cnumpy\nndarray\nK\x00\x85C\x01bt" + b"R"
    return start + b"(K\x01" + shape + dtype + flags + raw + b"tb"


def dtype(code: str, order: str = "|", more: bytes = b"NNN") -> bytes:
    state = b"(K\x03" + text(order) + more + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R" + state


def table(values: bytes) -> bytes:
    """A frame of one column waferMap whose values are these."""
    names = array(b"K\x01\x85", dtype("O8"), b"]" + text("waferMap") + b"a")
    axes = b"](" + names + b"Ne"
    block = (
        b"}("
        + text("values")
        + values
        + text("mgr_locs")
        + b"cbuiltins\nslice\nK\x00K\x01K\x01\x87Ru"
    )
    inner = b"}(" + text("axes") + axes + text("blocks") + b"](" + block + b"eu"
    state = b"(]]]}" + text("0.14.1") + inner + b"s" + b"t"
    manager = b"cpandas.core.internals\nBlockManager\n)R" + state + b"b"
    frame = b"cpandas.core.frame\nDataFrame\n)R}" + text("_data") + manager + b"sb"
    return b"\x80\x02" + frame + b"."


def images(data: bytes, labels: bytes = b"](K\x01e") -> bytes:
    return b"\x80\x02}(" + text("data") + data + text("labels") + labels + b"u."


OBJECTS, BYTES = dtype("O8"), dtype("u1")
DEEP = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."

ARRAYS: dict[str, bytes] = {
    "shape above the list": array(b"K\x01M\xff\xff\x86", OBJECTS, b"](NNe"),
    "shape below the list": array(b"K\x01K\x01\x86", OBJECTS, b"](NNe"),
    "a list that is a text": array(b"K\x08\x85", OBJECTS, text("x" * 64)),
    "a list that is bytes": array(b"K\x08\x85", OBJECTS, b"C\x40" + b"A" * 64),
    "negative shape": array(b"J\xff\xff\xff\xff\x85", OBJECTS, b"]"),
    "shape of huge numbers": array(b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x00\x86", BYTES, b"C\x00"),
    "shape of floats": array(b"G" + struct.pack(">d", 3.0) + b"\x85", BYTES, b"C\x03abc"),
    "shape of True": array(b"\x88\x85", BYTES, b"C\x01a"),
    "shape of 40 axes": array(b"(" + b"K\x01" * 40 + b"t", BYTES, b"C\x01a"),
    "too few bytes": array(b"K\x01M\x00\x0c\x86", BYTES, b"C\x03abc"),
    "too many bytes": array(b"K\x01K\x02\x86", BYTES, b"C\x03abc"),
    "numbers in a list": array(b"K\x02\x85", BYTES, b"](K\x01K\x02e"),
    "a type that is None": array(b"K\x02\x85", b"N", b"C\x02ab"),
    "a type that is a text": array(b"K\x02\x85", text("O"), b"C\x02ab"),
    "a structured type": array(b"K\x02\x85", dtype("V8"), b"C\x10" + b"A" * 16),
    "fields in a state": array(
        b"K\x01\x85",
        dtype("u8", more=b"N" + text("f") + b"\x85}" + text("f") + OBJECTS + b"K\x00\x86s"),
        b"C\x08" + b"A" * 8,
    ),
    "a byte order of its own": array(b"K\x02\x85", dtype("u1", "x"), b"C\x02ab"),
    "an empty state": NUMPY + b"(cnumpy\nndarray\nK\x00\x85C\x01btR)b",
    "a state of None": NUMPY + b"(cnumpy\nndarray\nK\x00\x85C\x01btRNb",
    "filled twice": array(b"K\x02\x85", BYTES, b"C\x02ab")
    + b"(K\x01K\x02\x85"
    + OBJECTS
    + b"\x89](NNetb",
    "in itself": NUMPY
    + b"(cnumpy\nndarray\nK\x00\x85C\x01btRq\x07(K\x01K\x01\x85"
    + OBJECTS
    + b"\x89]h\x07atb",
    "of another class": NUMPY
    + b"(cpandas.core.index\nIndex\nK\x00\x85C\x01btR(K\x01K\x00\x85"
    + BYTES
    + b"\x89C\x00tb",
    "called with objects": b"cnumpy.core.multiarray\nscalar\n" + OBJECTS + b"C\x08AAAAAAAA\x86R",
    "a scalar of few bytes": b"cnumpy.core.multiarray\nscalar\n"
    + dtype("f8", "<")
    + b"C\x03AAA\x86R",
    "objects from a buffer": b"cnumpy.core.numeric\n_frombuffer\n(C\x08AAAAAAAA"
    + OBJECTS
    + b"K\x01\x85"
    + text("C")
    + b"tR",
    "a class of arrays called": b"cnumpy\nndarray\nM\xff\xff\x85" + OBJECTS + b"\x86R",
    "a list of itself": b"]q\x01h\x01a",
    "lists of lists of lists": b"]"
    + b"".join(b"q%c]h%ca" % (n, n) + b"h%ca" % n for n in range(1, 60)),
    "a key nested deeply": b"})" + b"\x85" * 200_000 + b"Ns",
    "keys of tuples": b"}" + b"K\x01K\x02\x86Ns",
    "a set": b"\x8f(K\x01\x90",
    "a frozen set of deep tuples": b"()" + b"\x85" * 100_000 + b"\x91",
    "a place in the memory of 4 billion": b"Nr\xff\xff\xff\xff",
    "a text of 2**62 bytes": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "bytes of 2**40": b"\x8e" + struct.pack("<Q", 2**40) + b"abc",
    "a byte array of 2**33": b"\x96" + struct.pack("<Q", 2**33) + b"abc",
    "a frame of 2**50": b"\x95" + struct.pack("<Q", 2**50) + b"N",
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "what lies outside": b"\x97",
    "an object by a name": b"Pfile\n",
    "an extension": b"\x82\x01",
    "nothing on the stack": b"00000",
    "a mark without things": b"ttttt",
    "state of a function": b"c_codecs\nencode\n}" + text("__name__") + text("x") + b"sb",
    "attributes of a function": b"c_codecs\nencode\n(}}" + text("__defaults__") + b"Nstb",
    "state of a type": b"cnumpy\ndtype\n}" + text("build") + b"Nsb",
    "a million lists": b"]" * 50_000,
    "deep lists": b"]" * 50_000 + b"a" * 49_999,
    "a function of the system": b"cos\nsystem\n" + text("exit 1") + b"\x85R",
    "a function of NumPy": b"cnumpy\nload\n" + text("x") + b"\x85R",
    "eval": b"cbuiltins\neval\n" + text("1") + b"\x85R",
    "getattr of the reader": b"cbuiltins\ngetattr\n" + text("1") + b"\x85R",
}
"""What stands where an array belongs."""

CHILD = """
import base64, io, json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from metamae.errors import MetamaeError
from metamae.data.formats.pickles import read_batch, read_frame
from metamae.data.sources.wafers import failure_name, picture

def act(kind, content):
    if kind == "batch":
        return read_batch(io.BytesIO(content), "x")
    for column in read_frame(io.BytesIO(content), "x.pkl").values():
        for value in column[:3]:
            for use in (failure_name, picture):
                try:
                    use(value)
                except MetamaeError:
                    pass

for line in sys.stdin:
    kind, name, content = json.loads(line)
    print(name, flush=True, end=": ")
    try:
        act(kind, base64.b64decode(content))
        print("unaffected", flush=True)
    except MetamaeError as fault:
        assert "\\n" not in str(fault), name
        print("refused", flush=True)
    except BaseException as fault:
        print("FAULT", type(fault).__name__, str(fault)[:300], flush=True)
"""


def read_in_child(kind: str, cases: dict[str, bytes]) -> dict[str, str]:
    """Outcome of each case; the process has to live to the last, within its limits."""
    lines = [json.dumps([kind, name, base64.b64encode(c).decode()]) for name, c in cases.items()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"exit code {done.returncode} after {last}: {done.stderr[-500:]}"
    outcomes = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert list(outcomes) == list(cases)
    faults = {name: found for name, found in outcomes.items() if found.startswith("FAULT")}
    assert not faults
    return outcomes


@pytest.mark.parametrize("kind", ["table", "batch"])
def test_arrays_that_lie(kind: str) -> None:
    """The process lives, and says what is wrong; nothing of them comes out as an array."""
    wrap: Callable[[bytes], bytes] = table if kind == "table" else images
    cases = {name: wrap(content) for name, content in ARRAYS.items()}
    cases |= {f"{name}, alone": b"\x80\x04" + content + b"." for name, content in ARRAYS.items()}
    cases["a deep key"] = DEEP
    outcomes = read_in_child(kind, cases)
    COUNTS[f"hostile pickles: {kind}"].update(outcomes.values())
    # An array of objects that holds itself is one; who looks into it looks eight deep.
    assert {name for name, found in outcomes.items() if found != "refused"} <= {"in itself"}


def test_honest_ones_made_the_same_way_are_read() -> None:
    """Otherwise the attacks above would prove nothing."""
    content = table(array(b"K\x01K\x02\x86", OBJECTS, b"](NNe"))
    assert read_frame(io.BytesIO(content), "x")["waferMap"].tolist() == [None, None]
    rows = array(b"K\x01M\x00\x0c\x86", BYTES, b"B" + struct.pack("<I", 3072) + b"\x07" * 3072)
    assert read_batch(io.BytesIO(images(rows)), "x")[0].ravel().tolist() == [7] * 3072


def mutants(content: bytes, count: int, seed: int) -> dict[str, bytes]:
    """Copies with a few bytes changed, taken out, put in or repeated."""
    random, copies = Random(seed), {}
    for number in range(count):
        damaged = bytearray(content)
        for _ in range(random.choice((1, 1, 2, 4))):
            at = random.randrange(len(damaged))
            change = random.randrange(4)
            if change == 0:
                damaged[at] ^= 1 << random.randrange(8)
            elif change == 1:
                damaged[at] = random.randrange(256)
            elif change == 2:
                del damaged[at : at + random.randrange(1, 9)]
            else:
                damaged[at:at] = damaged[at : at + random.randrange(1, 40)]
        copies[f"mutant {number}"] = bytes(damaged)
    return copies


def seeds() -> dict[str, tuple[str, bytes]]:
    maps: list[Any] = [np.eye(3, dtype=np.uint8), np.zeros((2, 2), np.uint8)]
    old = old_table({"waferMap": maps, "failureType": [np.array([["none"]], object), "Center"]})
    files = {path.stem: ("table", path.read_bytes()) for path in sorted(PICKLED.glob("*.pkl"))}
    labelled = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]}, 5)
    return files | {
        "old": ("table", old),
        "2": ("batch", batch([7], [1])),
        "5": ("batch", labelled),
    }


@pytest.mark.parametrize("name", seeds())
def test_damaged_pickles(name: str, whole: bool) -> None:
    """A bare pickle has no checksum: other values can come out, a crash or a traceback cannot."""
    if not whole and name not in ("old", "2", "pandas-3.1.1"):
        pytest.skip("one of a sample: add --all to run it")
    kind, content = seeds()[name]
    cases = mutants(content, 400 if whole else 60, seed=15)
    outcomes = read_in_child(kind, cases)
    COUNTS["damaged bare pickles (no checksum)"].update(outcomes.values())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pandas-3.1.1-pyarrow", "its texts are kept by pyarrow; open it with pandas and save it"),
        ("pandas-3.1.1-category", "column of pandas' Categorical, which is not read; save it with"),
    ],
)
def test_columns_that_hold_something_else_are_named(file: str, message: str) -> None:
    """A Categorical holds codes: taken for values, every wafer would be unlabelled."""
    with (PICKLED / f"{file}.pkl").open("rb") as content, pytest.raises(DataError, match=message):
        read_frame(content, "x.pkl")


def test_the_oldest_protocol_is_read() -> None:
    """As text, and with a constructor of its own for every object."""
    with (PICKLED / "pandas-3.1.1-protocol-0.pkl").open("rb") as content:
        table = read_frame(content, "x.pkl")
    assert table["failureType"].tolist() == ["Center", "none"]
    assert table["waferMap"][0].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["u1", ">i4", "<f8", "S5", "U3", "?", "c16", "M8[ns]", "O"])
def test_every_kind_of_array_is_what_it_was(kind: str, protocol: int) -> None:
    for shape in ((), (0,), (4,), (2, 3), (0, 7)):
        values = np.arange(max(int(np.prod(shape)), 1)).astype("i8")[: int(np.prod(shape))]
        array = values.astype(kind if kind[0] != "M" else "i8").reshape(shape)
        array = array.view(kind) if kind[0] == "M" and array.size else array
        for order in "CF":
            wanted = np.array(array, order=order)  # type: ignore[call-overload]
            content = pickle.dumps({"data": wanted, "labels": []}, protocol)
            found = unpickle(io.BytesIO(content), "a batch", "x", table=False)["data"]
            # NumPy reads numbers of another byte order into its own.
            native = wanted.dtype.newbyteorder("=")
            assert (found.dtype.newbyteorder("="), found.shape) == (native, wanted.shape)
            assert found.tolist() == wanted.tolist()


def test_a_pickle_that_goes_on_is_refused() -> None:
    with pytest.raises(DataError, match="it goes on after its end"):
        read_batch(io.BytesIO(batch([7], [1]) + b"x"), "x")


def test_lists_that_hold_each_other_are_no_array() -> None:
    doubled: list[Any] = [0, 1]
    for _ in range(40):
        doubled = [doubled, doubled]
    endless: list[Any] = []
    endless.append(endless)
    for value in (doubled, endless, [np.zeros(1 << 20)] * 100, "x", None):
        with pytest.raises(DataError, match="expected an array, or lists of numbers"):
            plain_array(value)


def test_no_pickle_can_make_the_reader_of_the_standard_library_crash_here() -> None:
    """The attack is armed: the reader in C dies of it."""
    program = f"import pickle; pickle.loads(b'\\x80\\x02}})' + b'\\x85' * {10**6} + b'Ns.')"
    if run_child(program).returncode >= 0:
        pytest.skip("this Python hashes deep tuples safely")
