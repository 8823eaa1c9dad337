"""Pickles from anybody: arrays of numbers and plain containers are read, everything else is refused.

A pickle is a program. This reader interprets it by itself, and does not hand it to the interpreter's unpickler:

1. It imports nothing and calls nothing that a pickle names. Names on a short list say what is to be made; any other
   name, and what arrays and containers never need (persistent ids, copyreg's extension codes, instances by class,
   out-of-band buffers), is refused.
2. Arrays are made by us, for plain numbers only, and of as many bytes as are there.
3. Only texts, numbers and bytes are keys or members of sets: the hash of tuples that refer to one another over and
   over would take for ever.
4. A length beyond the file is refused, and what is copied has a budget, since references can make a small file a huge
   one.

What this cannot promise is told in SECURITY.md. More than 500 lines: the opcodes of six protocols are one machine,
which is best checked in one piece.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from latent_memory.errors import InputError, StoreDamagedError

# Plain numbers, with their byte order.
_NUMBERS = re.compile(r"([<>=|]?)([fiub])([1248])")
_ALLOWED_SIZES = {"f": "248", "i": "1248", "u": "1248", "b": "1"}

# What Python writes for a byte that is no plain character.
_ESCAPE = re.compile(rb"""\\(?:[\\'"abfnrtv]|x[0-9a-fA-F]{2}|[0-3]?[0-7]{1,2})""")

_MOST_DEEP = 100
_MOST_DIMENSIONS = 8
# Beyond it, many integers have the same hash.
_MOST_KEY = (1 << 61) - 2
# JSON in Python reads whole numbers of up to 4,300 digits; the text of longer ones takes ever longer to make.
_MOST_BITS = 14_284
# An empty array may be wide in a file of few bytes.
_MOST_WIDE = 1 << 20
# Shared texts, as a title that all rows of a conversation refer to, make the whole larger than the file.
_MOST_TIMES_THE_FILE = 100
_MOST_AT_LEAST = 1 << 26
# What a value takes in memory, roughly, a list or an empty dict, an empty set, and a key or member of the latter two.
_VALUE, _CONTAINER, _SET, _MEMBER = 8, 64, 216, 64

_STOP, _MEMOIZE, _SHORT_TEXT, _SHORT_GET = ord("."), 0x94, 0x8C, ord("h")


def unpickled(data: bytes, name: str) -> Any:
    """Return what a pickle holds: None, bool, numbers, texts, bytes, lists, tuples, dicts, sets, and NumPy arrays.

    Args:
        data: the pickle, up to and with its STOP.
        name: what messages call it.

    Raises:
        InputError: if it asks for anything else; nothing of that was run, nor even imported.
        StoreDamagedError: if it is not whole.
    """
    budget = _Budget(len(data))
    try:
        return _Copy(budget).plain(_Reader(data, budget).load())
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except RecursionError:
        raise InputError(f"{name}: nested too deeply; refused") from None
    # A program that takes what is not there, or tells a number that is none.
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error) as error:
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise StoreDamagedError(f"{name}: not readable as a pickle ({told}). Restore the file from a backup") from None


def takes(value: Any, depth: int) -> bool:
    """Tell whether a value, made of JSON's types, comes back from a pickle that holds it so deep."""
    try:
        _Copy(_Budget(1 << 62)).plain(value, depth)
    except InputError:
        return False
    return True


def _refuse(what: str) -> NoReturn:
    hint = _HINTS.get(what, "Do not open it with another program, unless you trust whoever made it")
    raise InputError(
        f"asks for {what[:200]!r}, which arrays and plain containers do not need; refused, and nothing was run. {hint}"
    )


# What honest people have in their pickles.
_HINTS = {
    **dict.fromkeys(
        ("datetime.datetime", "datetime.date", "pandas._libs.tslibs.timestamps._unpickle_timestamp"),
        "If it is yours, write times as texts (time.isoformat()) and save it again",
    ),
    **dict.fromkeys(
        ("pandas.core.frame.DataFrame", "pandas.DataFrame"),
        'If it is yours, save {"embeddings": frame.to_numpy(), "metadata": [...]} instead',
    ),
    **dict.fromkeys(
        ("collections.defaultdict", "decimal.Decimal", "uuid.UUID", "pathlib.PosixPath", "pathlib._local.PosixPath"),
        "If it is yours, make plain dicts, numbers and texts of such values and save it again",
    ),
}


class _Budget:
    """How many bytes may still be made of a file."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = max(_MOST_AT_LEAST, size * _MOST_TIMES_THE_FILE)

    def take(self, amount: int) -> None:
        """Take from it.

        Raises:
            InputError: if there is no more.
        """
        self._left -= amount
        if self._left < 0:
            raise InputError(f"holds far more than a file of {self.size:,} bytes should; refused")


class _Name:
    """Stands for a name on the list."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Dtype:
    """Stands for a type of plain numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, order: str) -> None:
        self.code = code
        self.order = order

    @classmethod
    def called(cls, code: Any) -> _Dtype:
        """Return the type that is called so."""
        match = _NUMBERS.fullmatch(code) if isinstance(code, str) else None
        if not match or match[3] not in _ALLOWED_SIZES[match[2]]:
            # Not the repr of anything else: what refers to itself over and over has one without end.
            shown = repr(code[:40]) if isinstance(code, str) else f"a {type(code).__name__}"
            raise InputError(f"NumPy data of the type {shown}, which are no plain numbers; refused")
        return cls(match[2] + match[3], match[1])

    def build(self, state: Any) -> None:
        """Set the byte order: (version, order, None, None, None, ...)."""
        if type(state) is not tuple or len(state) < 5 or state[2:5] != (None, None, None):
            raise InputError("an array of what are no plain numbers; refused")
        if state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    @property
    def type(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for an array until its state is told."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: np.ndarray[Any, Any] | None = None


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_ALLOWED = {
    **{(module, "_reconstruct"): "array" for module in _MULTIARRAY},
    **{(module, "scalar"): "scalar" for module in _MULTIARRAY},
    **{(module, "_frombuffer"): "buffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encoded",
    ("collections", "OrderedDict"): "dict",
    **{(module, kind): kind for module in _BUILTINS for kind in ("bytearray", "bytes", "set", "frozenset")},
}


def _key(key: Any) -> Any:
    """Return what may be a key of a dict, or a member of a set."""
    kind = type(key)
    if (kind is int and abs(key) > _MOST_KEY) or kind not in (str, int, float, bool, bytes, type(None)):
        raise InputError(f"a key, or what is in a set, is a {kind.__name__} that cannot be one; refused")
    return key


class _Reader:
    """Interprets a pickle."""

    def __init__(self, data: bytes, budget: _Budget) -> None:
        self._data = data
        self._at = 0
        self._budget = budget
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return what the pickle leaves; stand-ins for names and arrays may be in it."""
        data, size, memo, actions = self._data, len(self._data), self._memo, _ACTIONS
        while self._at < size:
            at = self._at
            code = data[at]
            # Three that are most of any pickle, without the detour.
            if code == _MEMOIZE:
                memo[len(memo)] = self._stack[-1]
                self._at = at + 1
                continue
            if code == _SHORT_TEXT and at + 1 < size and (end := at + 2 + data[at + 1]) <= size:
                self._stack.append(str(data[at + 2 : end], "utf-8", "surrogatepass"))
                self._at = end
                continue
            if code == _SHORT_GET and at + 1 < size:
                self._stack.append(memo[data[at + 1]])
                self._at = at + 2
                continue
            self._at = at + 1
            action = actions[code]
            if action is not None:
                action(self)
            elif code == _STOP:
                if self._at != size:
                    raise ValueError(f"{size - self._at:,} bytes follow its end")
                return self._stack.pop()
            elif code in _REFUSED:
                _refuse(_REFUSED[code])
            else:
                raise ValueError(f"byte {self._at - 1:,} is no opcode")
        raise ValueError("it ends before its end was told")

    # -- arguments --

    def _take(self, length: int) -> bytes:
        start, self._at = self._at, self._at + length
        if length < 0 or self._at > len(self._data):
            raise ValueError(f"byte {start:,} tells of more than there is")
        return self._data[start : self._at]

    def _number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(width), "little", signed=signed)

    def _line(self) -> bytes:
        start, end = self._at, self._data.find(b"\n", self._at)
        if end < 0:
            raise ValueError("it ends within a line")
        self._at = end + 1
        return self._data[start:end]

    def _marked(self) -> list[Any]:
        """Return what was pushed since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        return items

    # -- opcodes --

    def protocol(self) -> None:
        if (told := self._number(1)) > 5:
            raise InputError(f"protocol {told} of pickle is not known; refused")

    def frame(self) -> None:
        if (told := self._number(8)) > len(self._data) - self._at:
            raise ValueError(f"a frame of {told:,} bytes goes beyond its end")

    def mark(self) -> None:
        self._budget.take(_CONTAINER)
        self._marks.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def pop_marked(self) -> None:
        self._marked()

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def integer(self) -> None:
        line = self._line()
        self._stack.append(line == b"01" if line in (b"00", b"01") else int(line, 0))

    def long(self) -> None:
        self._stack.append(int(self._line().removesuffix(b"L"), 0))

    def float(self) -> None:
        self._stack.append(float(self._line()))

    def double(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise ValueError("a text without its quotes")
        if b"\\" in _ESCAPE.sub(b"", line[1:-1]):
            raise ValueError("an escape that is none")
        self._stack.append(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))

    def escaped(self) -> None:
        self._stack.append(self._line().decode("raw-unicode-escape"))

    def get_line(self) -> None:
        self._stack.append(self._memo[int(self._line())])

    def _put(self, index: int) -> None:
        if not 0 <= index <= len(self._data):
            raise ValueError(f"place {index:,} in the memo was not reached yet")
        self._memo[index] = self._stack[-1]

    def put_line(self) -> None:
        self._put(int(self._line()))

    def tuple_of_marked(self) -> None:
        self._budget.take(_CONTAINER)
        items = self._marked()
        self._stack.append(tuple(items))

    def list_of_marked(self) -> None:
        items = self._marked()
        self._stack.append(items)

    def append(self) -> None:
        self._extend([self._stack.pop()])

    def appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("appends to what is no list")
        target.extend(items)

    def dict_of_marked(self) -> None:
        items = self._marked()
        self._budget.take(_CONTAINER)
        self._stack.append({})
        self._set(items)

    def set_item(self) -> None:
        value = self._stack.pop()
        self._set([self._stack.pop(), value])

    def set_items(self) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("sets an item of what is no dict")
        self._budget.take(_MEMBER * len(items) // 2)
        for at in range(0, len(items), 2):
            target[_key(items[at])] = items[at + 1]

    def add_items(self) -> None:
        items = self._marked()
        target = self._stack[-1]
        if type(target) is not set:
            raise TypeError("adds to what is no set")
        self._budget.take(_MEMBER * len(items))
        target.update(map(_key, items))

    def frozen_set(self) -> None:
        items = self._marked()
        self._budget.take(_SET + _MEMBER * len(items))
        self._stack.append(set(map(_key, items)))

    def name(self) -> None:
        module, attribute = (self._line().decode("utf-8", "replace") for _ in range(2))
        self._named(module, attribute)

    def name_from_stack(self) -> None:
        attribute, module = self._stack.pop(), self._stack.pop()
        if type(module) is not str or type(attribute) is not str:
            raise TypeError("a name is no text")
        self._named(module, attribute)

    def _named(self, module: str, attribute: str) -> None:
        kind = _ALLOWED.get((module, attribute))
        if kind is None:
            _refuse(f"{module}.{attribute}")
        self._stack.append(_Name(kind))

    def reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(called) is not _Name or type(arguments) is not tuple:
            raise InputError(f"calls a {type(called).__name__}, which is no function; refused")
        self._stack.append(self._made(called.kind, arguments))

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        match target, state:
            case _Dtype(), _:
                target.build(state)
            case _Array(made=None), (_, tuple() as shape, _Dtype() as kind, bool() | int() as fortran, raw):
                target.made = self._array(raw, kind, shape, "F" if fortran else "C")
            # As the first versions of NumPy wrote it.
            case _Array(made=None), (tuple() as shape, _Dtype() as kind, bool() | int() as fortran, raw):
                target.made = self._array(raw, kind, shape, "F" if fortran else "C")
            case _:
                raise InputError("sets the state of what has none; refused")

    def _made(self, kind: str, arguments: tuple[Any, ...]) -> Any:
        """Make what a call on the list makes."""
        match kind, arguments:
            case "array", (_Name(kind="ndarray"), *_):
                return _Array()
            case "buffer", (raw, _Dtype() as dtype, tuple() as shape, "C" | "F" as order):
                return self._array(raw, dtype, shape, order)
            case "buffer", (raw, _Dtype() as dtype, tuple() as shape, "C" | "F" as order, None):
                return self._array(raw, dtype, shape, order)
            case "buffer", (raw, _Dtype() as dtype, tuple() as shape, "K", tuple() as axes):
                made = self._array(raw, dtype, shape, "C")
                if len(axes) != len(shape) or not all(type(axis) is int for axis in axes):
                    raise ValueError("the order of an array's axes")
                return made.transpose(axes)
            case "scalar", (_Dtype() as dtype, raw):
                return self._array(raw, dtype, (), "C").item()
            case "dtype", (code, *_):
                return _Dtype.called(code)
            case ("encoded", (str() as text, "latin1" | "latin-1")) | ("bytearray", (str() as text, "latin-1")):
                return self._latin(text)
            case ("bytes" | "bytearray", ()):
                return b""
            case "bytearray", (bytes() as raw,):
                return raw
            case "dict", ():
                return {}
            case "dict", (list() as pairs,):
                self._budget.take(_CONTAINER + _MEMBER * len(pairs))
                return {_key(key): value for key, value in map(_pair, pairs)}
            case (("set" | "frozenset"), (list() | tuple() as items,)):
                self._budget.take(_SET + _MEMBER * len(items))
                return set(map(_key, items))
            case (("set" | "frozenset"), ()):
                return set()
        raise InputError(f"makes a {kind} of what it cannot be made of; refused")

    def _latin(self, text: str) -> bytes:
        self._budget.take(len(text))
        return text.encode("latin-1")

    def _array(self, raw: Any, dtype: _Dtype, shape: Sequence[Any], order: Any) -> np.ndarray[Any, Any]:
        kind = dtype.type
        if type(raw) is str:
            raw = self._latin(raw)
        most = max(self._budget.size, _MOST_WIDE)
        if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= most for n in shape):
            raise InputError("an array of a shape that cannot be; refused")
        needed = kind.itemsize
        for n in shape:
            needed *= n
        if type(raw) is not bytes or needed != len(raw):
            raise InputError("an array of a shape that has not as many bytes as are there; refused")
        return np.ndarray(tuple(shape), kind, raw, order=order)


def _pair(pair: Any) -> Any:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        raise TypeError("a dict of what are no pairs")
    return pair


def _pushes(make: Callable[[_Reader], Any], cost: int = 0) -> Callable[[_Reader], None]:
    if cost:

        def push_container(reader: _Reader) -> None:
            reader._budget.take(cost)
            reader._stack.append(make(reader))

        return push_container

    def push(reader: _Reader) -> None:
        reader._stack.append(make(reader))

    return push


def _text(reader: _Reader, width: int) -> str:
    return reader._take(reader._number(width)).decode("utf-8", "surrogatepass")


def _joined(count: int) -> Callable[[_Reader], None]:
    def join(reader: _Reader) -> None:
        stack = reader._stack
        if len(stack) < count:
            raise IndexError("a tuple of more than there is")
        reader._budget.take(_CONTAINER)
        stack[-count:] = [tuple(stack[-count:])]

    return join


# By opcode, as in pickletools.
_BY_OPCODE: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": _Reader.protocol,
    b"\x95": _Reader.frame,
    b"(": _Reader.mark,
    b"0": _Reader.pop,
    b"1": _Reader.pop_marked,
    b"2": _Reader.duplicate,
    b"N": _pushes(lambda _: None),
    b"\x88": _pushes(lambda _: True),
    b"\x89": _pushes(lambda _: False),
    b"I": _Reader.integer,
    b"L": _Reader.long,
    b"F": _Reader.float,
    b"G": _Reader.double,
    b"J": _pushes(lambda reader: reader._number(4, signed=True)),
    b"K": _pushes(lambda reader: reader._number(1)),
    b"M": _pushes(lambda reader: reader._number(2)),
    b"\x8a": _pushes(lambda reader: reader._number(reader._number(1), signed=True)),
    b"\x8b": _pushes(lambda reader: reader._number(reader._number(4, signed=True), signed=True)),
    b"S": _Reader.quoted,
    b"V": _Reader.escaped,
    b"T": _pushes(lambda reader: reader._take(reader._number(4, signed=True)).decode("latin-1")),
    b"U": _pushes(lambda reader: reader._take(reader._number(1)).decode("latin-1")),
    b"X": _pushes(lambda reader: _text(reader, 4)),
    b"\x8c": _pushes(lambda reader: _text(reader, 1)),
    b"\x8d": _pushes(lambda reader: _text(reader, 8)),
    b"B": _pushes(lambda reader: reader._take(reader._number(4))),
    b"C": _pushes(lambda reader: reader._take(reader._number(1))),
    b"\x8e": _pushes(lambda reader: reader._take(reader._number(8))),
    b"\x96": _pushes(lambda reader: reader._take(reader._number(8))),
    b"g": _Reader.get_line,
    b"h": _pushes(lambda reader: reader._memo[reader._number(1)]),
    b"j": _pushes(lambda reader: reader._memo[reader._number(4)]),
    b"p": _Reader.put_line,
    b"q": lambda reader: reader._put(reader._number(1)),
    b"r": lambda reader: reader._put(reader._number(4)),
    b"t": _Reader.tuple_of_marked,
    b")": _pushes(lambda _: ()),
    b"\x85": _joined(1),
    b"\x86": _joined(2),
    b"\x87": _joined(3),
    b"l": _Reader.list_of_marked,
    b"]": _pushes(lambda _: [], _CONTAINER),
    b"a": _Reader.append,
    b"e": _Reader.appends,
    b"d": _Reader.dict_of_marked,
    b"}": _pushes(lambda _: {}, _CONTAINER),
    b"s": _Reader.set_item,
    b"u": _Reader.set_items,
    b"\x8f": _pushes(lambda _: set(), _SET),
    b"\x90": _Reader.add_items,
    b"\x91": _Reader.frozen_set,
    b"c": _Reader.name,
    b"\x93": _Reader.name_from_stack,
    b"R": _Reader.reduce,
    b"b": _Reader.build,
}
_ACTIONS = [_BY_OPCODE.get(bytes([code])) for code in range(256)]
_REFUSED = {
    ord("P"): "PERSID",
    ord("Q"): "BINPERSID",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    ord("i"): "INST",
    ord("o"): "OBJ",
    0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}


class _Copy:
    """Copies what was read to plain data, within a budget."""

    def __init__(self, budget: _Budget) -> None:
        self._take = budget.take

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Return a copy."""
        kind = type(value)
        if kind in (str, bytes):
            self._take(_VALUE + len(value))
            return value
        if kind in (int, float, bool, type(None)):
            self._take(_VALUE)
            if kind is int and value.bit_length() > _MOST_BITS:
                raise InputError("holds an integer of too many digits; refused")
            return value
        if kind is _Array and value.made is not None:
            value, kind = value.made, np.ndarray
        if kind is np.ndarray:
            self._take(_CONTAINER + value.nbytes)
            return value
        self._take((_SET if kind is set else _CONTAINER) + (_MEMBER * len(value) if kind in (set, dict) else 0))
        if depth > _MOST_DEEP:
            raise InputError("nested too deeply, or within itself; refused")
        if kind is dict:
            return {self.plain(key): self.plain(item, depth + 1) for key, item in value.items()}
        if kind in (list, tuple, set):
            return kind([self.plain(item, depth + 1) for item in value])
        raise InputError(f"holds a {kind.__name__.removeprefix('_').lower()} that is not whole; refused")
