"""Reading the one kind of pickle that CIFAR-10 comes in, without unpickling it.

A pickle is a program, and Python's own reader runs it. This one only reads: `pickletools` turns the
file into a list of instructions, and a small machine here follows the few that build dicts, lists,
numbers, texts, bytes and uint8 arrays. Whatever else a file asks for, a function to call or a class
to make, is refused by name; nothing of the file is ever imported or called. A file's size bounds
the work: nothing from it is hashed, compared or written out before its kind is known, since a few
bytes can stand for a value that is endless or doubles with every level. What the values mean is not
known here.
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
_PLAIN = (str, bytes, int, float, bool, type(None))
_DEEPEST = 16
"""Levels of containers in containers; a CIFAR-10 batch has two."""


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
        return _finished(_Machine(path).run(path.read_bytes()), {})
    except (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
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
            last = _expect(str, self.stack.pop())
            found = _Name(_expect(str, self.stack.pop()), last)
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
            _expect(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            keys = [_expect((str, bytes, int), key) for key in items[::2]]
            _expect(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        else:
            raise self.refusal(f"the instruction {name}")

    def since_mark(self) -> list[Any]:
        for place in reversed(range(len(self.stack))):
            if isinstance(self.stack[place], _Mark):
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise ValueError("the end of a container without its beginning")

    def call(self, what: Any, given: Any) -> Any:
        """What a call would have made, of the three that are known."""
        known = _expect(_Name, what)
        first, second = (*_expect(tuple, given), None, None)[:2]
        if known in _RECONSTRUCT and isinstance(first, _Name) and first == _NDARRAY:
            return _Array()
        if known == _DTYPE:
            return _Dtype(_text(_expect((str, bytes), first)))
        if known == _ENCODE and isinstance(second, str | bytes) and _text(second) == "latin1":
            return _expect(str, first).encode("latin-1")
        raise self.refusal(f"a call of {known.module}.{known.name}")

    def fill(self, target: Any, state: Any) -> None:
        """The contents of an array; a dtype's further state is its default."""
        if isinstance(target, _Dtype):
            return
        if not isinstance(target, _Array):
            raise self.refusal("an object with a state")
        _, shape, dtype, fortran, data = _expect(tuple, state)
        code = dtype.code if isinstance(dtype, _Dtype) else type(dtype).__name__
        if code != "u1" or fortran is not False or not isinstance(data, bytes):
            raise self.refusal(f"an array other than of uint8 in C order ({code})")
        sides = [_expect(int, side) for side in _expect(tuple, shape)]
        target.value = np.frombuffer(data, np.uint8).reshape(sides)

    def refusal(self, what: str) -> MbrlError:
        return MbrlError(
            f"{self.path}: expected a CIFAR-10 batch (dicts, lists, texts, numbers and uint8 "
            f"arrays), got {what}, which is refused: a pickle can run any code; if you trust the "
            f"file, save its images as an .npz and give that"
        )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _expect(kind: type | tuple[type, ...], value: Any) -> Any:
    """The value, if it is of that kind.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, kind):
        names = [one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,))]
        raise ValueError(f"{type(value).__name__} where only {' or '.join(names)} can be")
    return value


def _finished(value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """A value with the arrays in the place of what held them; what is shared stays shared.

    Args:
        value: as the machine left it; all of it stays alive meanwhile.
        known: what is finished, by the `id` of what it was.
        depth: containers around it.

    Raises:
        ValueError: it is nested too deeply, perhaps in itself, or no value of a batch.
    """
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if type(value) not in (dict, list, tuple):
        raise ValueError(f"a value that is no data ({type(value).__name__})")
    if id(value) not in known:
        if depth >= _DEEPEST:
            raise ValueError(f"containers nested deeper than {_DEEPEST} levels")
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        pairs = [(key, _finished(item, known, depth + 1)) for key, item in inner]
        known[id(value)] = (
            dict(pairs) if isinstance(value, dict) else type(value)(item for _, item in pairs)
        )
    return known[id(value)]
