"""Pickles made to hurt: each is refused in one sentence, at once, whatever it is made of."""

import time
from pathlib import Path

import pytest

from mbrl.errors import MbrlError
from mbrl.studies.flows.pickled import read_pickled

START = b"\x80\x02"


def read(tmp_path: Path, content: bytes) -> object:
    (tmp_path / "batch").write_bytes(START + content)
    return read_pickled(tmp_path / "batch")


def doubled(times: int, close: bytes) -> bytes:
    """A value that holds the last one twice, so many times: 2 ** times values in a few bytes."""
    return b"K\x01q\x00" + b"".join(
        b"h%c" % level + b"h%c" % level + close + b"q%c" % (level + 1) for level in range(times)
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"]q\x00h\x00a.", "nested deeper than 16", id="a list in itself"),
        pytest.param(b"}q\x00K\x01h\x00s.", "nested deeper than 16", id="a dict in itself"),
        pytest.param(b"K\x01" + 5000 * b"\x85" + b".", "nested deeper than 16", id="deep tuples"),
        pytest.param(b"}K\x01a.", "dict where only list", id="append to a dict"),
        pytest.param(b"NK\x01a.", "NoneType where only list", id="append to None"),
        pytest.param(b"N(K\x01e.", "NoneType where only list", id="appends to None"),
        pytest.param(b"K\x01K\x02K\x03s.", "int where only dict", id="an item of a number"),
        pytest.param(b"]K\x02K\x03s.", "list where only dict", id="an item of a list"),
        pytest.param(b"}K\x01\x85K\x03s.", "tuple where only", id="a tuple as a key"),
        pytest.param(b"K\x01(e.", "int where only list", id="appends to a number"),
        pytest.param(b"K\x01e.", "without its beginning", id="no mark"),
        pytest.param(b"(.", "no data", id="a mark"),
        pytest.param(b"]K\x01R.", "where only", id="a call of a list"),
        pytest.param(b"cnumpy\ndtype\nK\x01R.", "int where only tuple", id="a call with a number"),
        pytest.param(b"cnumpy\ndtype\n)R.", "NoneType where only str", id="a call of nothing"),
        pytest.param(b"cnumpy\ndtype\n.", "no data", id="a name"),
        pytest.param(b"K\x01K\x02\x93.", "int where only str", id="names that are numbers"),
        pytest.param(b"c_codecs\nencode\nK\x01X\x06\0\0\0latin1\x86R.", "int where", id="encode"),
        pytest.param(b"R.", "pop from empty list", id="an empty stack"),
    ],
)
def test_a_pickle_that_makes_no_sense_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, said: str
) -> None:
    with pytest.raises(MbrlError, match=f"expected a CIFAR-10 batch.*{said}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "shape", [b"K\x01\x85", b"\x8a\x10" + 15 * b"\xff" + b"\x7f\x85", b"]\x85"]
)
def test_an_array_of_a_shape_that_its_bytes_do_not_have_is_refused(
    tmp_path: Path, shape: bytes
) -> None:
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    with pytest.raises(MbrlError, match="expected a CIFAR-10 batch"):
        read(tmp_path, array + b"(K\x01" + shape + dtype + b"\x89U\x02abtb.")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(doubled(60, b"\x86") + b".", id="tuples"),
        pytest.param(b"}" + doubled(60, b"\x86") + b"K\x01s.", id="as a key"),
        pytest.param(doubled(60, b"\x86") + b"h\x3c\x93.", id="as a name"),
        pytest.param(doubled(60, b"\x86") + b"\x85R.", id="as a call"),
        pytest.param(b"cnumpy\ndtype\n" + doubled(60, b"\x86") + b"\x85R.", id="as a dtype"),
    ],
)
def test_a_value_that_doubles_with_every_level_is_refused_at_once(
    tmp_path: Path, content: bytes
) -> None:
    began = time.process_time()
    with pytest.raises(MbrlError, match="expected a CIFAR-10 batch"):
        read(tmp_path, content)
    assert time.process_time() - began < 1


def test_what_is_shared_is_read_once_and_stays_shared(tmp_path: Path) -> None:
    found = read(tmp_path, doubled(15, b"\x86") + b".")
    assert isinstance(found, tuple) and found[0] is found[1]
    for _ in range(15):
        assert isinstance(found, tuple) and len(found) == 2
        found = found[0]
    assert found == 1


def test_many_small_containers_take_time_in_proportion(tmp_path: Path) -> None:
    began = time.process_time()
    found = read(tmp_path, b"](" + 30_000 * b"(t" + b"e.")
    assert found == 30_000 * [()]
    assert time.process_time() - began < 5
