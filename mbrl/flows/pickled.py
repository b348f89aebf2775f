"""Reading the one kind of pickle that CIFAR-10 comes in, without unpickling it.

A pickle is a program, and Python's own reader runs it. This one only reads: `pickletools` turns the
file into a list of instructions, and a small machine here follows the few that build dicts, lists,
numbers, texts, bytes and uint8 arrays. Whatever else a file asks for, a function to call or a class
to make, is refused by name; nothing of the file is ever imported or called. What the values mean is
not known here.
"""

import pickletools
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbrl.errors import MbrlError

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINFLOAT"),
}
_BYTE_STRINGS = {"BINSTRING", "SHORT_BINSTRING", "STRING"}  # Python 2's str
_GET, _PUT = {"BINGET", "LONG_BINGET", "GET"}, {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
_IGNORED = {"PROTO", "FRAME"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(NamedTuple):
    """Something that the file names; it is only ever compared with what is known here."""

    module: str
    name: str


_RECONSTRUCT = {
    _Name("numpy.core.multiarray", "_reconstruct"),
    _Name("numpy._core.multiarray", "_reconstruct"),
}
_NDARRAY, _DTYPE = _Name("numpy", "ndarray"), _Name("numpy", "dtype")
_ENCODE = _Name("_codecs", "encode")  # how Python 3 writes bytes for Python 2
_KNOWN = {*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE}


class _Dtype(NamedTuple):
    code: str


class _Array:
    """An array before (and after) its contents are read."""

    value: Any = None


class _Mark:
    """Where the items of the next container begin."""


def read_pickled(path: Path) -> Any:
    """The value of a pickle made of dicts, lists, tuples, texts, numbers, bytes and uint8 arrays.

    Args:
        path: the file.

    Returns:
        The value, texts of Python 2 as bytes.

    Raises:
        MbrlError: the file cannot be read, is no pickle, or asks for anything else.
    """
    try:
        return _finished(_Machine(path).run(path.read_bytes()))
    except (OSError, ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise MbrlError(f"{path}: expected a CIFAR-10 batch (a pickle), got: {error}") from error


class _Machine:
    """A stack, a memo, and the instructions that are allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.follow(opcode.name, argument)
        raise ValueError("no end")

    def follow(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _VALUES:
            stack.append(argument)
        elif name in _BYTE_STRINGS:
            stack.append(argument.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUT:
            self.memo[len(self.memo) if argument is None else int(argument)] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[int(argument)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.name_something(name, argument)
        elif name == "REDUCE":
            given = stack.pop()
            stack.append(self.call(stack.pop(), given))
        elif name == "BUILD":
            state = stack.pop()
            self.fill(stack[-1], state)
        else:
            self.contain(name)

    def name_something(self, kind: str, argument: Any) -> None:
        if kind == "GLOBAL":
            found = _Name(*argument.split(" ", 1))
        else:
            last = self.stack.pop()
            found = _Name(self.stack.pop(), last)
        if found not in _KNOWN:
            raise self.refusal(f"{found.module}.{found.name}")
        self.stack.append(found)

    def contain(self, name: str) -> None:
        """Instructions that make and fill containers."""
        stack = self.stack
        if name == "MARK":
            stack.append(_Mark())
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = self.since_mark()
            stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        else:
            raise self.refusal(f"the instruction {name}")

    def since_mark(self) -> list[Any]:
        place = max(i for i, item in enumerate(self.stack) if isinstance(item, _Mark))
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def call(self, what: Any, given: Any) -> Any:
        """What a call would have made, of the three that are known."""
        if what in _RECONSTRUCT and given[0] == _NDARRAY:
            return _Array()
        if what == _DTYPE:
            return _Dtype(_text(given[0]))
        if what == _ENCODE and given[1] == "latin1":
            return given[0].encode("latin-1")
        raise self.refusal(f"a call of {what}")

    def fill(self, target: Any, state: Any) -> None:
        """The contents of an array; a dtype's further state is its default."""
        if isinstance(target, _Dtype):
            return
        if not isinstance(target, _Array):
            raise self.refusal("an object with a state")
        _, shape, dtype, fortran, data = state
        if dtype != _Dtype("u1") or fortran or not isinstance(data, bytes):
            raise self.refusal(f"an array other than of uint8 in C order ({dtype})")
        target.value = np.frombuffer(data, np.uint8).reshape(shape)

    def refusal(self, what: str) -> MbrlError:
        return MbrlError(
            f"{self.path}: expected a CIFAR-10 batch (dicts, lists, texts, numbers and uint8 "
            f"arrays), got {what}, which is refused: a pickle can run any code; if you trust the "
            f"file, save its images as an .npz and give that"
        )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _finished(value: Any) -> Any:
    """A value with the arrays in the place of what held them."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    return value
