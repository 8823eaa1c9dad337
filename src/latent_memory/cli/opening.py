"""Opening the memory that a command is for, and reading what else it is given."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_memory.cli.ending import PROGRAM, StoppedError, note
from latent_memory.errors import InputError

if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory


@contextmanager
def open_memory(
    store: Path | None,
    embedder: str | None = None,
    *,
    create: bool = False,
    summariser: str | None = None,
    reranker: str | None = None,
    warm: bool = False,
    layout: str | None = None,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[LatentMemory]:
    """Open the memory that a command is for, and close it at the end; see `LatentMemory.open`.

    Args:
        store: where it is; None for the user's own.
        embedder: its name.
        create: make the memory if there is none.
        summariser: its name.
        reranker: its name.
        warm: load what a search needs.
        layout: the format of a new one.
        on_bad: what to do with an entry that cannot be used.
    """
    from latent_memory import formats
    from latent_memory.database import FILE_NAME
    from latent_memory.memory import LatentMemory

    place = place_of(store)
    with looking_into(place):
        if place.name == FILE_NAME and place.is_file():
            raise InputError(f"{place}: is a file in a store; name its directory: {place.parent}")
        if place.is_file() and formats.detect(place) is None:
            added = f"{PROGRAM} add {shlex.quote(str(place))}"
            raise InputError(f"{place}: is a file, and no memory; add it to one with: {added}")
    with LatentMemory.open(
        place,
        embedder=embedder,
        create=create,
        summariser=summariser,
        reranker=reranker,
        format=layout,
        on_bad=on_bad,
    ) as memory:
        for told in memory.notes:
            note(told)
        if warm:
            memory.warm()
        yield memory


def place_of(store: Path | None) -> Path:
    """Return where the memory is."""
    if store is not None:
        return store.expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("latent-memory", appauthor=False)) / "memory"


@contextmanager
def looking_into(path: Path) -> Iterator[None]:
    """Turn what goes wrong as a path is looked at into our error."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot look into {str(path)[:80]}: {error.args[-1]}") from None


@contextmanager
def telling_if_stopped(so_far: Callable[[], str]) -> Iterator[None]:
    """Tell what became of a command's work, if the user interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(so_far()) from None


def filters(
    *, since: str | None, until: str | None, during: str | None, roles: Sequence[str], conversations: Sequence[str]
) -> dict[str, Any]:
    """Return the filters of a search, as `recall` and `context` take them."""
    period = {"since": since, "until": until, "during": during}
    return {**period, "roles": roles or None, "conversation_ids": conversations or None}


def query_of(query: str) -> str:
    """Return a query; - is what standard input holds."""
    if query != "-":
        return query
    from latent_memory import inputs

    try:
        return inputs.standard_input().read().decode()
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 (byte {error.start})") from None
