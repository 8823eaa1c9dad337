"""Importers: files that people have -> Conversations.

One module a format. Each has

    DESCRIPTION                                   what the format is, in a few words, with the file's usual name
    recognises(sample) -> bool                    is a file that begins like this one of ours?
    conversations(path, reading) -> Iterator      the conversations of a file, one at a time, in bounded memory

and knows nothing of the store. Names are those of the modules; `--from NAME` on the command line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from latent_memory import json_stream
from latent_memory.errors import InputError
from latent_memory.importers import archives
from latent_memory.importers.base import SAMPLE_BYTES, OnBad, OnSkip, Reading, Sample, lines, shape_of
from latent_memory.records import Conversation

# In the order in which they are asked whether a file is theirs: the narrowest first.
NAMES = (
    *("chatgpt", "claude", "claude_code", "codex", "slack", "letta", "mem0", "locomo", "whatsapp"),
    *("langchain", "sharegpt", "jsonl", "summaries", "transcript"),
)

# So many entries of a file are looked at: the first ones may be broken, or tell nothing.
_CANDIDATES = 16
_LISTED = ", ".join(NAMES)
_BLANK = b"\xef\xbb\xbf \t\r\n"
# So many files of an archive or a directory are.
_MEMBERS = 8


class Importer(Protocol):
    """What an importer's module is."""

    DESCRIPTION: str

    def recognises(self, sample: Sample) -> bool:
        """Tell whether a file that begins like this is of this format."""
        ...

    def conversations(self, path: Path, reading: Reading) -> Iterator[Conversation]:
        """Yield a file's conversations, one at a time."""
        ...


def load(name: str) -> Importer:
    """Return the importer of that name.

    Raises:
        InputError: if there is none; the message lists those that are there.
    """
    if name not in NAMES:
        raise InputError(f"no importer is called {name!r}; there are {', '.join(NAMES)}")
    return cast(Importer, importlib.import_module(f"latent_memory.importers.{name}"))


def read(
    path: str | Path,
    *,
    source: str | None = None,
    name: str | None = None,
    on_bad: OnBad | None = None,
    on_skip: OnSkip | None = None,
    branches: bool = False,
    table: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Conversation]:
    """Read the conversations of a file, a zip or a directory, one at a time.

    Args:
        path: of the file.
        source: the importer's name, one of NAMES; by default the file's content tells.
        name: what messages call the file.
        on_bad, on_skip, branches, table, columns: as of a Reading.

    Raises:
        InputError: if the file cannot be read, its format is unknown, it changes meanwhile, or what it holds cannot be
            used: also two conversations of one id that differ. One that is repeated is passed over.
    """
    path, name = Path(path), name or str(path)
    source = source or recognise(path, name=name)
    importer = load(source)
    before = state(path, name)
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(microsecond=0)
    reading = Reading(name, written, on_bad, on_skip or (lambda _: None), branches, table, columns)
    found = importer.conversations(path, reading)
    # Of a file of summaries, its reader does so, on disk: there may be millions.
    known = None if source == "summaries" else _Known(reading)
    while True:
        try:
            conversation = next(found)
        except StopIteration:
            check_unchanged(path, name, before)
            return
        except InputError:
            # If the file changed, that is why.
            check_unchanged(path, name, before)
            raise
        except OSError as error:
            raise unreadable(path, name, error) from None
        if known is None or known.is_new(conversation):
            yield conversation


class _Known:
    """The conversations that one input held so far, in about 200 bytes each: an id must not mean two of them."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._count = 0
        self._found: dict[bytes, tuple[int, bytes]] = {}

    def is_new(self, conversation: Conversation) -> bool:
        """Tell whether there was none of its id yet; one that differs from it is reported as bad."""
        self._count += 1
        identifier = conversation.conversation_id
        if identifier is None:
            # It gets one made of its content.
            return True
        content = _digest(conversation)
        first, known = self._found.setdefault(_hash(identifier), (self._count, content))
        if first == self._count:
            return True
        if known == content:
            self._reading.on_skip("a repeated conversation")
        else:
            shown = repr(identifier if len(identifier) <= 80 else identifier[:77] + "...")
            self._reading.bad(
                f"conversation {self._count} ({shown})",
                f"conversation {first} has this id too, and another content; which one counts is not known",
            )
        return False


def _hash(*texts: str) -> bytes:
    digest = blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def _digest(conversation: Conversation) -> bytes:
    told = (conversation.title, conversation.timestamp, conversation.type, sorted(conversation.generated))
    return _hash(
        repr(told),
        conversation.summary or "",
        json.dumps(conversation.metadata, sort_keys=True),
        *(part for turn in conversation.turns for part in (repr((turn.role, turn.name, turn.timestamp)), turn.text)),
    )


# -- recognising --------------------------------------------------------------------------------------------


def recognise(path: str | Path, *, name: str | None = None) -> str:
    """Tell from its content which importer reads a file, a zip or a directory.

    Args:
        path: of the file.
        name: what messages call it.

    Returns:
        The importer's name, one of NAMES.

    Raises:
        InputError: if it cannot be read, is broken or empty, or its format is unknown; the message lists those.
    """
    path, name = Path(path), name or str(path)
    state(path, name)
    try:
        empty, broken = True, False
        for sample in _samples(path, name):
            for importer in NAMES:
                if load(importer).recognises(sample):
                    return importer
            empty = empty and not sample.members and not sample.start.strip(_BLANK)
            broken = sample.first is None and sample.start.lstrip(_BLANK)[:1] == b"{"
    except OSError as error:
        raise unreadable(path, name, error) from None
    if path.is_dir():
        raise InputError(f"cannot read {name}: Is a directory, and no export that is read as one; name the files in it")
    if empty:
        raise InputError(f"{name}: empty; there is nothing to add")
    if path.suffix == ".jsonl" or broken:
        # Its reader says which line is wrong.
        return "jsonl"
    try:
        reason = _wrong_with(path)
    except OSError as error:
        raise unreadable(path, name, error) from None
    raise InputError(f"{name}: {reason or f'unknown format; name it with --from: {_LISTED}'}")


def _wrong_with(path: Path) -> str | None:
    """Tell what is wrong with a file that no importer knows, if its name or its first bytes tell what it should be."""
    suffix = path.suffix.lower()
    if archives.is_archive(path):
        return None
    if suffix == ".zip":
        return "called a zip, and not one; download it again"
    if suffix in (".db", ".sqlite", ".sqlite3"):
        return "called a database, and not one of SQLite"
    with path.open("rb") as stream:
        shape = shape_of(stream)
        stream.seek(0)
        start = stream.read(SAMPLE_BYTES).lstrip(_BLANK)
    try:
        with path.open("rb") as stream:
            values: Iterable[Any]
            if suffix in (".yaml", ".yml"):
                from latent_memory.formats import plain_yaml

                values = (value for _, value in plain_yaml.documents(stream))
            elif shape != "lines" and (suffix == ".json" or (suffix not in (".md", ".txt") and _JSON.match(start))):
                values = json_stream.abridged(stream, 1) if shape == "object" else json_stream.values(stream)
            else:
                return None
            # Read to its end, where a file that was cut off shows it.
            full = sum(not _is_hollow(value) for value in values)
    except InputError as error:
        return str(error)
    return None if full else "holds nothing; there is nothing to add"


# A text may begin with a bracket too.
_JSON = re.compile(rb"[\[{]\s*[\[{\]}\"]")


def _is_hollow(value: object) -> bool:
    """Tell whether a value is an export's that holds nothing: {"results": []}."""
    if not isinstance(value, dict):
        return value in (None, [])
    inner = [each for each in value.values() if isinstance(each, (dict, list))]
    return not value or (bool(inner) and not any(inner))


def _samples(path: Path, name: str) -> Iterator[Sample]:
    """Yield what a file begins with: with its first value, then with the next ones."""
    if not archives.is_archive(path):
        yield from _samples_of(lambda: path.open("rb"), path, ())
        return
    with archives.opened(path, name) as archive:
        for member in sorted(archive.names, key=_prominence)[:_MEMBERS]:
            yield from _samples_of(partial(archive.open, member), path, archive.names)


def _prominence(member: str) -> tuple[bool, bool, int, str]:
    """Order the files of an archive: what is called conversations first, then JSON, then what is less deep in it."""
    base = member.rpartition("/")[2]
    is_json = base.endswith((".json", ".jsonl"))
    return not (is_json and base.startswith("conversations")), not is_json, member.count("/"), member


def _samples_of(open_: Callable[[], BinaryIO], path: Path, members: tuple[str, ...]) -> Iterator[Sample]:
    # Opened anew for each look: what comes out of a zip cannot be wound back.
    with open_() as stream:
        start = stream.read(SAMPLE_BYTES)
    with open_() as stream:
        shape = shape_of(stream)
    told_nothing = True
    with open_() as stream:
        for value in _values(stream, shape):
            told_nothing = False
            yield Sample(path, start, members, value, shape)
    if told_nothing:
        yield Sample(path, start, members, None, shape)


def _values(stream: BinaryIO, shape: str) -> Iterator[Any]:
    try:
        if shape == "lines":
            for _, (_, line) in zip(range(_CANDIDATES), lines(stream), strict=False):
                with contextlib.suppress(ValueError, RecursionError):
                    yield json.loads(line)
        elif shape != "text":
            found = json_stream.abridged(stream, _CANDIDATES) if shape == "object" else json_stream.values(stream)
            for _, value in zip(range(_CANDIDATES), found, strict=False):
                yield value
    except archives.ArchiveError:
        raise
    except InputError:
        # Broken JSON ends it; what came before may be enough.
        return


# -- files --------------------------------------------------------------------------------------------------


State = tuple[tuple[str, int, int, int], ...]


def state(path: Path, name: str) -> State:
    """Return what tells one state of a file, or of the files in a directory, from the next, without reading it.

    Raises:
        InputError: if there is no such file.
    """
    try:
        if not path.is_dir():
            return (_state(path, path),)
        with archives.opened(path, name) as archive:
            return tuple(_state(path, path / member) for member in archive.names)
    except (OSError, ValueError) as error:
        raise unreadable(path, name, error) from None


def check_unchanged(path: Path, name: str, before: State) -> None:
    """Raise InputError if a file is not what it was when `before` was looked at."""
    if state(path, name) != before:
        raise InputError(f"{name}: changed while it was read; wait until it is written, and try again")


def unreadable(path: Path, name: str, error: Exception) -> InputError:
    """Return the error that tells why a file cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        reason = f"a symbolic link to {path.readlink()}, which is not there"
    return InputError(f"cannot read {name}: {reason}")


def _state(root: Path, path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return path.relative_to(root).as_posix(), found.st_size, found.st_mtime_ns, found.st_ino
