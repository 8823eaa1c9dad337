"""What the command line is given to add: files, directories, standard input; recognised, checked, then read once more.

Every file is read twice. The first time tells whether it can be used, before anything is added; the second time it is
added. Between the two, and during each, it must not change.
"""

from __future__ import annotations

import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from latent_memory import importers
from latent_memory.errors import InputError
from latent_memory.output import bare, counter
from latent_memory.records import Conversation

# How parts that cannot be used are counted among what was left out.
BAD = "a bad entry"


class Source(NamedTuple):
    """A file to read.

    Attributes:
        path: where it is; of a pipe, where it was copied to.
        name: what messages call it.
        format: the importer's name.
        recognised: the content told the format, nobody said it.
        state: what tells whether it changed; see `importers.state`.
    """

    path: Path
    name: str
    format: str
    recognised: bool
    state: importers.State

    @property
    def description(self) -> str:
        """What the format is, without the file's usual name."""
        return importers.load(self.format).DESCRIPTION.partition(" (")[0]


@dataclass(slots=True)
class Inputs:
    """The files that are to be added.

    Attributes:
        sources: in the order they were named.
        branches, table, columns: as of importers.Reading.
        counts: for each source, after `check`, its conversations and turns.
        bad: what cannot be used and is left out, after `check`: file, place and reason.
        skipped: how often what is left out by design was, by a few words that say what it is; what cannot be used too.
    """

    sources: list[Source]
    branches: bool = False
    table: str | None = None
    columns: Mapping[str, str] | None = None
    counts: list[tuple[int, int]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def check(self, *, skip_bad: bool = False) -> None:
        """Read everything from end to end, and count it.

        Args:
            skip_bad: leave out what cannot be used, and put it into `bad`.

        Raises:
            InputError: for a file that cannot be read, and, without `skip_bad`, the first part that cannot be used.
        """

        def on_bad(error: InputError) -> None:
            self.bad.append(str(error))
            self.skipped[BAD] += 1

        def on_skip(what: str) -> None:
            self.skipped[what] += 1

        for source in self.sources:
            conversations = turns = 0
            left_out = self.skipped.total()
            with counter(f"checking {source.name} ({source.description})", "conversation") as at:
                try:
                    for conversation in self._read(source, on_bad if skip_bad else None, on_skip):
                        conversations += 1
                        turns += len(conversation.turns)
                        at(conversations)
                except InputError as error:
                    # One that was recognised wrongly fails at its first entry.
                    if conversations or not source.recognised or source.format == "jsonl":
                        raise
                    raise InputError(f"{error} (taken for: {source.description}; --from overrules)") from None
            if not conversations and self.skipped.total() == left_out:
                raise InputError(
                    f"{source.name}: holds no conversations ({source.description}); there is nothing to add"
                )
            self.counts.append((conversations, turns))

    def conversations(self, *, skip_bad: bool = False) -> Iterator[Conversation]:
        """Yield all conversations, one at a time; what is left out was told by `check`."""
        for source in self.sources:
            importers.check_unchanged(source.path, source.name, source.state)
            yield from self._read(source, (lambda _: None) if skip_bad else None, lambda _: None)

    def files_json(self) -> list[dict[str, Any]]:
        """Return what was read, as docs/cli.md describes it."""
        return [
            {"name": source.name, "format": source.format, "conversations": conversations, "turns": turns}
            for source, (conversations, turns) in zip(self.sources, self.counts, strict=True)
        ]

    def skipped_json(self) -> dict[str, int]:
        """Return what was left out, as docs/cli.md describes it."""
        return {bare(what): count for what, count in self.skipped.most_common()}

    def _read(
        self, source: Source, on_bad: Callable[[InputError], None] | None, on_skip: Callable[[str], None]
    ) -> Iterator[Conversation]:
        return importers.read(
            source.path,
            source=source.format,
            name=source.name,
            on_bad=on_bad,
            on_skip=on_skip,
            branches=self.branches,
            table=self.table,
            columns=self.columns,
        )


@contextmanager
def opened(
    files: Sequence[str],
    source: str | None = None,
    *,
    branches: bool = False,
    table: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Inputs]:
    """Recognise files; what cannot be read twice, standard input or a pipe, is copied to a temporary file first.

    Args:
        files: as named on the command line; - is standard input.
        source: the importer's name; by default each file's content tells.
        branches, table, columns: as of importers.Reading; the latter two tell that the files are summaries.

    Raises:
        InputError: if a file cannot be read, or its format is unknown; if standard input is named twice.
    """
    if files.count("-") > 1:
        raise InputError("- is named twice; standard input can be read once")
    source = source or ("summaries" if table or columns else None)
    if source is not None:
        importers.load(source)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        found = []
        for number, file in enumerate(files):
            path, name = _readable_twice(file, Path(temporary) / str(number))
            state = importers.state(path, name)
            if source is not None:
                found.append(Source(path, name, source, False, state))
            else:
                found.append(Source(path, name, importers.recognise(path, name=name), True, state))
        yield Inputs(found, branches, table, columns)


def _readable_twice(file: str, spooled: Path) -> tuple[Path, str]:
    path, name = (None, "standard input") if file == "-" else (Path(file), file)
    if path is not None and not _is_pipe(path):
        return path, name
    try:
        with standard_input() if path is None else path.open("rb") as pipe, spooled.open("wb") as copy:
            shutil.copyfileobj(pipe, copy)
    except OSError as error:
        raise InputError(f"cannot copy {name} to a temporary file: {error.strerror or error}") from None
    return spooled, name


def standard_input() -> BinaryIO:
    """Return standard input to read bytes from.

    Raises:
        InputError: if it is closed.
    """
    # If it was closed before this process began, there is none.
    if sys.stdin is None:
        raise InputError("standard input: closed; there is nothing to read")
    return sys.stdin.buffer


def _is_pipe(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        # Whatever is wrong with it, the reader says so.
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
