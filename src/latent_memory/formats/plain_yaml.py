"""YAML as plain data: mappings, lists and texts. Nothing else is ever made of a file, whatever its tags ask for.

PyYAML reads the events; the values are made here, with the bounds that a file from anywhere needs: on depth, and on
what aliases repeat. Scalars stay as they are written (`Plain`) until `typed` makes numbers of them: 0328711 is an id,
and 2025-03-28 is what somebody wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO

from latent_memory.errors import InputError, MissingExtraError

MOST_DEPTH = 100
# What aliases repeat may be so many times what the file has up to there: a file that shares tags between its entries
# stays far below, and a "billion laughs" is refused at its third line.
MOST_REPEATED = 10
FREE_CHARACTERS = 100_000

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# As JSON has them; Python reads whole numbers of up to 4,300 digits.
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,4000})(\.\d+)?([eE][-+]?\d{1,3})?", re.ASCII)
# YAML's own names; of a scalar they change nothing but whether it is a text.
_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_CORE}{name}" for name in ("int", "float", "bool", "null", "timestamp")}
# A text that a reader of YAML 1.1 or 1.2 could take for something else stands in quotes.
_AMBIGUOUS = re.compile(r"[-+.]?[0-9].*|[-+]?\.(inf|nan)|~|null|true|false|yes|no|on|off|y|n|<<|=", re.IGNORECASE)


class Plain(str):
    """A scalar that stands without quotes, as it is written."""

    __slots__ = ()


class Object(dict[str, Any]):
    """A mapping that knows which of its keys stand twice; the last one counts."""

    def __init__(self, pairs: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__()
        self.twice: list[str] = []
        for key, value in pairs:
            self.put(key, value)

    def put(self, key: str, value: Any) -> None:
        """Set a key."""
        if key in self:
            self.twice.append(key)
        self[key] = value


def documents(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield what a YAML file holds: of each document that is a list its elements, of another one the whole.

    Yields:
        The line from 1, and the value: an Object, a list, a text, or a `Plain`. An empty document is passed over.

    Raises:
        MissingExtraError: if PyYAML is not installed.
        InputError: if it is not YAML, asks for anything but plain data, is nested too deeply, or repeats too much.
    """
    yaml = _pyyaml()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        events = iter(yaml.parse(stream, Loader=loader))
        builder = _Builder(yaml, events)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                builder.begin()
                first = next(events)
                line = first.start_mark.line + 1
                if not isinstance(first, yaml.SequenceStartEvent):
                    value = builder.value(first)
                    if not (isinstance(value, Plain) and value in _NULLS):
                        yield line, value
                    continue
                builder.check(first)
                while not isinstance(element := next(events), yaml.SequenceEndEvent):
                    yield element.start_mark.line + 1, builder.value(element)
    except yaml.reader.ReaderError as error:
        raise InputError(f"not YAML ({error.reason}: near byte {error.position})") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f": line {mark.line + 1}" if mark else ""
        # Some releases have a bound of their own, below which ours may not be reached.
        if "nesting depth" in str(problem):
            raise InputError(f"not plain data (nested too deeply{where})") from None
        raise InputError(f"not YAML ({' '.join(str(problem or error).split())}{where})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not YAML (not UTF-8: near byte {error.start})") from None


def typed(value: Any) -> Any:
    """Return a value with its plain scalars as JSON has them: null, true and false, numbers; all else is a text."""
    if isinstance(value, dict):
        return {str(key): typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    if not isinstance(value, Plain):
        return value
    if is_null(value):
        return None
    if value in _BOOLEANS:
        return _BOOLEANS[value]
    number = json.loads(value) if _NUMBER.fullmatch(value) else None
    return str(value) if number is None or number in (math.inf, -math.inf) else number


def is_null(value: Any) -> bool:
    """Tell whether a scalar without quotes is YAML's null."""
    return isinstance(value, Plain) and value in _NULLS


def writer(stream: IO[bytes]) -> Any:
    """Return a function that writes one element of a list after the other to a YAML file.

    Raises:
        MissingExtraError: if PyYAML is not installed.
    """
    yaml = _pyyaml()
    safe: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(safe):  # type: ignore[misc]
        def ignore_aliases(self, _: object) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        # Escaped where it holds what other readers would take for the end of a line, or would not show.
        odd = not data.replace("\n", "").isprintable() or data != data.strip()
        style = '"' if odd else "'" if _AMBIGUOUS.fullmatch(data) else None
        return dumper.represent_scalar(f"{_CORE}str", data, style=style)

    Dumper.add_representer(str, text)

    def write(element: Any) -> None:
        stream.write(
            yaml.dump([element], Dumper=Dumper, allow_unicode=True, sort_keys=False, width=100, encoding="utf-8")
        )

    return write


@dataclass(slots=True)
class _Open:
    """A mapping or a list whose end was not read yet; its weight counts the characters in it."""

    value: Object | list[Any]
    anchor: str | None
    key: str | None = None
    weight: int = 1
    merged: list[Any] = field(default_factory=list)

    def put(self, value: Any, weight: int, line: int) -> None:
        self.weight += weight
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.key is None:
            if not isinstance(value, str):
                raise InputError(f"not plain data (a key that is no text: line {line})")
            self.key = value
        else:
            if self.key == "<<" and isinstance(self.key, Plain):
                self.merged += value if isinstance(value, list) else [value]
            else:
                self.value.put(str(self.key), value)
            self.key = None

    def finished(self) -> Any:
        if isinstance(self.value, dict):
            # A merge brings what is not told here.
            for other in self.merged:
                for key, value in other.items() if isinstance(other, dict) else ():
                    self.value.setdefault(key, value)
        return self.value


class _Builder:
    """Makes values of events. Not recursive: how deep a file is nested is not its own affair."""

    def __init__(self, yaml: Any, events: Iterator[Any]) -> None:
        self._yaml = yaml
        self._events = events
        self._repeated = 0
        self.begin()

    def begin(self) -> None:
        """Begin a document: anchors of the one before are gone."""
        self._anchors: dict[str, tuple[Any, int]] = {}

    def value(self, event: Any) -> Any:
        """Return the value that begins with an event, whose end is then the last event that was read."""
        yaml = self._yaml
        open_: list[_Open] = []
        while True:
            weight = 0
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self.check(event)
                if len(open_) >= MOST_DEPTH:
                    raise InputError(f"not plain data (nested too deeply: line {event.start_mark.line + 1})")
                mapping = isinstance(event, yaml.MappingStartEvent)
                open_.append(_Open(Object() if mapping else [], event.anchor))
            else:
                anchor = None
                if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                    ended = open_.pop()
                    value, weight, anchor = ended.finished(), ended.weight, ended.anchor
                elif isinstance(event, yaml.AliasEvent):
                    value, weight = self._repeat(event)
                else:
                    self.check(event)
                    value, weight, anchor = self._scalar(event), len(event.value) + 1, event.anchor
                if anchor is not None:
                    self._anchors[anchor] = value, weight
                if not open_:
                    return value
                open_[-1].put(value, weight, event.start_mark.line + 1)
            event = next(self._events)

    def check(self, event: Any) -> None:
        """Raise InputError if an event's tag asks for more than plain data."""
        tag = event.tag
        if tag in (None, "!", f"{_CORE}str", f"{_CORE}seq", f"{_CORE}map") or tag in _PLAIN_TAGS:
            return
        shown = tag.replace(_CORE, "!!", 1)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise InputError(
            f"the tag {shown} asks for more than plain data, and is refused: line {event.start_mark.line + 1}"
        )

    def _scalar(self, event: Any) -> str:
        plain = event.implicit[0] if event.tag is None else event.tag in _PLAIN_TAGS
        return Plain(event.value) if plain else event.value

    def _repeat(self, event: Any) -> tuple[Any, int]:
        line = event.start_mark.line + 1
        found = self._anchors.get(event.anchor)
        if found is None:
            raise InputError(f"not plain data (*{event.anchor[:40]} is not told before, or holds itself: line {line})")
        self._repeated += found[1]
        if self._repeated > MOST_REPEATED * event.start_mark.index + FREE_CHARACTERS:
            raise InputError(f"its aliases repeat far more than the file holds, and are refused: line {line}")
        return found


def _pyyaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError(
            "YAML files need PyYAML. Install it with: pip install 'latent-memory[formats]'"
        ) from None
    return yaml
