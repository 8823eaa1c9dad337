"""Where stored keys and values lie, so that they can be removed with what they were computed from.

`DIRECTORY/SCOPE/CONVERSATION/STRETCH.safetensors`, each name a digest: the stretch's holds the model's fingerprint and
the text. Knows files and no tensors, so that `forget` needs no PyTorch. All of it is derived: what is removed is
computed again when it is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from latent_memory.errors import StoreError
from latent_memory.files import as_ours, written

NAME = "blocks"
SUFFIX = ".safetensors"
# What the names of stored prefixes begin with.
PREFIX = "prefix-"
# What all blocks may take on the disk, unless another limit was kept; the least recently used go first.
LIMIT_BYTES = 4_000_000_000
_LIMIT = "limit"


def digest(*parts: str | bytes) -> str:
    """Return 32 hexadecimal digits that stand for the parts in this order."""
    told = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        told.update(len(data).to_bytes(8, "little") + data)
    return told.hexdigest()[:32]


def place(directory: Path, scope: str, conversation_id: str | None = None) -> Path:
    """Return the directory of a scope's blocks, or of a conversation's."""
    of_scope = directory / digest(scope)
    return of_scope if conversation_id is None else of_scope / digest(conversation_id)


def drop(directory: Path, scope: str, conversation_ids: Iterable[str] | None = None) -> None:
    """Remove the blocks of conversations, or of the whole scope; prefixes that were stored of the scope, too.

    What a prefix holds cannot be told from its name, so that any of them may hold what is forgotten.
    """
    if not directory.is_dir():
        return
    if conversation_ids is None:
        gone = [place(directory, scope)]
    else:
        gone = [place(directory, scope, each) for each in conversation_ids] + [prefixes(directory, scope)]
    for each in gone:
        # Twice: another process may put a file into it meanwhile.
        for _ in range(2):
            shutil.rmtree(each, ignore_errors=True)
        if each.exists():
            raise StoreError(
                f"{each}: cannot be deleted, and holds what was forgotten; the database no longer does. End what uses "
                "it, another process perhaps, and forget the same again"
            )


def prefixes(directory: Path, scope: str) -> Path:
    """Return the directory of a scope's stored prefixes."""
    return place(directory, scope) / "prefixes"


def use(path: Path) -> None:
    """Note that a block was used now: the one that was not for the longest time is the first to be evicted."""
    with contextlib.suppress(OSError):
        os.utime(path)


def evict(directory: Path, limit: int, spare: tuple[str, ...] = ()) -> int:
    """Remove the blocks that were not used for the longest time, until all of them have at most `limit` bytes.

    Args:
        directory: that they lie in.
        limit: in bytes.
        spare: those whose names begin with one of these stay.

    Returns:
        How many bytes they have then.
    """
    found = []
    for path in directory.rglob(f"*{SUFFIX}"):
        # Another process may remove it meanwhile.
        with contextlib.suppress(OSError):
            told = path.stat()
            found.append((told.st_mtime_ns, told.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        if not path.name.startswith(spare):
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
    return total


def limit_of(directory: Path) -> int:
    """Return the most bytes that a directory's blocks may take: what was kept by `keep_limit`, else 4 GB."""
    with contextlib.suppress(OSError, ValueError):
        return int((directory / _LIMIT).read_text(encoding="ascii"))
    return LIMIT_BYTES


def keep_limit(directory: Path, limit: int) -> None:
    """Let a directory's blocks take so many bytes from now on, in every process."""
    with as_ours(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with written(directory / _LIMIT) as file:
        file.write(str(limit).encode())
