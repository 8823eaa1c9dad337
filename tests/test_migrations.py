"""A store that an older version has written opens, and keeps all that is in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.database import FILE_NAME
from latent_memory.migrations import MIGRATIONS

TALK = Conversation(
    "a", [Turn("user", "What do you take? "), Turn("assistant", "Green tea."), Turn("user", "Why? So.")]
)


def as_version_1(store: Path) -> None:
    """Take out of a store what the second version has added."""
    with closing(sqlite3.connect(store / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("DROP TABLE tokens")
        connection.execute("ALTER TABLE passages DROP COLUMN asks")
        connection.execute("PRAGMA user_version = 1")


def test_a_store_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store") as memory:
        memory.add(TALK)
    as_version_1(tmp_path / "store")
    with LatentMemory.open(tmp_path / "store") as memory:
        database = memory._store.database
        assert database.row("PRAGMA user_version") == (len(MIGRATIONS),)
        assert database.rows("SELECT asks FROM passages ORDER BY passage_id") == [(1,), (0,), (0,)]
        assert memory.get("a") is not None
        # Tokens come with what is embedded again, and until then recall does without.
        hit = memory.recall("what do you drink?", k=1)[0]
        assert hit.signals["tokens"] == 0
        assert hit.passage.text == "Green tea."
        memory.reembed("minilm")
        assert database.row("SELECT count(*) FROM tokens") == (3,)
        assert memory.recall("what do you drink?", k=1)[0].signals["tokens"] > 0


def test_an_interrupted_reembedding_of_version_1_goes_on(tmp_path: Path) -> None:
    with LatentMemory.open(tmp_path / "store", embedder="hashing") as memory:
        memory.add(TALK)

        def stop(done: int, _: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            memory.reembed("minilm", progress=stop)
    with closing(sqlite3.connect(tmp_path / "store" / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("DROP TABLE new_tokens")
    with LatentMemory.open(tmp_path / "store", embedder="hashing") as memory:
        assert memory.reembed("minilm") == 3
