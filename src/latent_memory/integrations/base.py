"""What the adapters share. Knows no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from latent_memory.errors import MissingExtraError
from latent_memory.records import Hit

# Whose memory it is: a name, or what finds it in what the application gives to a run (its context, its dependencies).
Scope = str | Callable[[Any], str]

# Stands where a turn needs a text and nothing is to be found by it: no word in it, and no meaning.
NOTHING = "…"


@contextmanager
def needed(module: str, package: str) -> Iterator[None]:
    """Turn a failed import of a framework's module into an error that says how to install it.

    Args:
        module: the top of what is imported, as in "langchain_core".
        package: what pip calls it.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"this adapter needs the package {package}. Install it with: pip install {package}"
        ) from None


def scope_for(scope: Scope, given: Any) -> str:
    """Return whose memory a run is about.

    Args:
        scope: a name, or what finds it.
        given: what the application gives to the run.
    """
    return scope if isinstance(scope, str) else scope(given)


def told(hit: Hit) -> dict[str, Any]:
    """Return what is known of a hit beside its text, as JSON data."""
    passage = hit.passage
    return {
        "conversation_id": passage.conversation_id,
        "turn": passage.turn,
        "role": passage.role,
        "name": passage.name,
        "timestamp": passage.timestamp.isoformat(),
        "title": passage.title,
        "score": hit.score,
    }


def place(hit: Hit) -> str:
    """Return an id for the turn that a hit is of."""
    turn = hit.passage.turn
    return f"{hit.passage.conversation_id}#{'summary' if turn is None else turn}"
