"""Conversations that are trees: editing a message, or asking for another answer, begins a new branch.

One branch is the conversation. The others are left out; if they are kept (`Reading.branches`), each becomes a
conversation of its own with the id `ID/branch-NODE`, where NODE is the first message in which it differs from those
before it. It holds the whole path from the beginning, and `branch_of` in its metadata names the conversation.

Since each repeats the path, what many branches hold grows with the square of what was said; so only the first
MOST_BRANCHES are kept. New branches come after those that were there, so that these stay the same in a later export.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Generic, TypeVar

from latent_memory.errors import InputError
from latent_memory.importers.base import Reading

Node = TypeVar("Node", bound=Hashable)

MOST_BRANCHES = 100
CIRCLE = "its messages follow each other in a circle"
# Tells nobody; for a look at what a message would say.
SILENT = Reading("", datetime(1970, 1, 1, tzinfo=UTC), on_bad=lambda _: None)


class Tree(Generic[Node]):
    """Messages, in the order in which they are found, and which one each follows.

    Attributes:
        leaves: the messages that none follows.
    """

    def __init__(self, parents: Mapping[Node, Node | None]) -> None:
        self._parents = parents
        followed = set(parents.values())
        self.leaves = [node for node in parents if node not in followed]

    def path(self, node: Node | None) -> list[Node]:
        """Return the messages from the beginning to one of them.

        Raises:
            InputError: if they follow each other in a circle.
        """
        path: dict[Node, None] = {}
        while node is not None:
            if node in path:
                raise InputError(CIRCLE)
            path[node] = None
            node = self._parents[node]
        return [*path][::-1]

    def others(self, main: Iterable[Node], speaks: Callable[[Node], bool]) -> list[tuple[Node, Node]]:
        """Return the other branches in which something was said: the first message of theirs that speaks, and the last.

        Raises:
            InputError: if messages follow each other in a circle.
        """
        seen = set(main)
        found = []
        for leaf in self.leaves:
            own: dict[Node, None] = {}
            node: Node | None = leaf
            while node is not None and node not in seen:
                if node in own:
                    raise InputError(CIRCLE)
                own[node] = None
                node = self._parents[node]
            seen.update(own)
            said = [each for each in own if speaks(each)]
            if said:
                found.append((said[-1], leaf))
        if len(seen) < len(self._parents):
            raise InputError(CIRCLE)
        return found


def kept(others: Iterable[tuple[Node, Node]], reading: Reading) -> Iterator[tuple[Node, Node]]:
    """Yield those of the other branches that are kept; the rest is told to `reading.on_skip`."""
    for number, branch in enumerate(others, start=1):
        if not reading.branches:
            reading.on_skip("an unused branch")
        elif number > MOST_BRANCHES:
            reading.on_skip(f"a branch in excess of {MOST_BRANCHES}")
        else:
            yield branch


def called(identifier: str | None, node: str) -> tuple[str | None, dict[str, str]]:
    """Return a branch's id, and what its metadata tell of it."""
    name = f"{identifier}/branch-{node}" if identifier else None
    return name, {"branch_of": identifier or "", "branch": node}
