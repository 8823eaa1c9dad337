"""The store's schema, as numbered steps that are only ever appended.

`PRAGMA user_version` says how many steps a database has had. Each step runs in one transaction with the
number it leads to, so that a database is always at exactly one version.
"""

from __future__ import annotations

import sqlite3

from latent_memory.errors import StoreVersionError

# "LtMm": marks the file as ours, so that another program's database is not mistaken for a store.
APPLICATION_ID = 0x4C744D6D

MIGRATIONS: tuple[str, ...] = (
    # 1: conversations, turns, passages, vectors.
    #
    # Passage ids are never reused (AUTOINCREMENT) and are handed out inside the one write transaction there
    # can be, so they are also the sequence numbers by which an index knows how far it has read. Deletions
    # have their own. `scopes.added` and `.deleted` are the highest of each: one row tells an index whether
    # there is anything new.
    #
    # Vectors lie in a table of their own: everything else of a passage is 60 bytes, a vector 1.5 kB.
    # `passages.text` is NULL where the passage is the whole turn. A piece of a long turn keeps its own text:
    # SQLite's substr() ends at a NUL character, which a stored text may hold.
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('store', lower(hex(randomblob(16))));
    CREATE TABLE scopes (
        scope_id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        added INTEGER NOT NULL DEFAULT 0,
        deleted INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE conversations (
        conversation_key INTEGER PRIMARY KEY AUTOINCREMENT,
        scope_id INTEGER NOT NULL REFERENCES scopes,
        conversation_id TEXT NOT NULL,
        title TEXT NOT NULL,
        timestamp TEXT NOT NULL,
        epoch REAL NOT NULL,
        type TEXT NOT NULL,
        summary TEXT NOT NULL,
        metadata TEXT NOT NULL,
        generated TEXT NOT NULL,
        version INTEGER NOT NULL DEFAULT 0,
        UNIQUE (scope_id, conversation_id)
    );
    CREATE INDEX conversations_newest ON conversations (scope_id, epoch DESC, conversation_key DESC);
    CREATE TABLE turns (
        conversation_key INTEGER NOT NULL REFERENCES conversations,
        position INTEGER NOT NULL,
        role TEXT NOT NULL,
        name TEXT,
        text TEXT NOT NULL,
        timestamp TEXT,
        digest BLOB NOT NULL,
        PRIMARY KEY (conversation_key, position)
    );
    CREATE TABLE passages (
        passage_id INTEGER PRIMARY KEY AUTOINCREMENT,
        scope_id INTEGER NOT NULL REFERENCES scopes,
        conversation_key INTEGER NOT NULL REFERENCES conversations,
        position INTEGER NOT NULL,
        piece INTEGER NOT NULL,
        start INTEGER NOT NULL,
        text TEXT,
        words INTEGER NOT NULL,
        role INTEGER NOT NULL,
        epoch REAL NOT NULL
    );
    CREATE INDEX passages_by_scope ON passages (scope_id, passage_id);
    CREATE UNIQUE INDEX passages_in_order ON passages (conversation_key, position, piece);
    CREATE TABLE vectors (
        passage_id INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE,
        vector BLOB NOT NULL
    );
    CREATE VIEW said AS
        SELECT passage_id, passages.scope_id, passages.conversation_key, passages.position, piece, start,
               coalesce(turns.role, '') AS role, turns.name AS name, coalesce(turns.name, turns.role, '') AS speaker,
               coalesce(passages.text, turns.text, conversations.summary) AS text,
               coalesce(turns.timestamp, conversations.timestamp) AS timestamp, conversation_id, title
        FROM passages JOIN conversations ON conversations.conversation_key = passages.conversation_key
        LEFT JOIN turns
            ON turns.conversation_key = passages.conversation_key AND turns.position = passages.position;
    CREATE TABLE deletions (
        deletion_id INTEGER PRIMARY KEY AUTOINCREMENT,
        scope_id INTEGER NOT NULL,
        passage_id INTEGER NOT NULL,
        conversation_key INTEGER NOT NULL
    );
    CREATE INDEX deletions_by_scope ON deletions (scope_id, deletion_id);
    """,
    # Whether a passage ends with a question, and codes of its tokens (late.py), where its embedder makes any: of
    # what an older version has stored there are none until it is embedded again.
    """
    ALTER TABLE passages ADD COLUMN asks INTEGER NOT NULL DEFAULT 0;
    UPDATE passages SET asks = 1 WHERE passage_id IN (SELECT passage_id FROM said WHERE rtrim(text) LIKE '%?');
    CREATE TABLE tokens (
        passage_id INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE,
        codes BLOB NOT NULL
    )
    """,
)


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Bring a database up to the newest version; a new one is created.

    Args:
        connection: in autocommit mode (isolation_level None).
        where: the database's path, for the error message.

    Raises:
        StoreVersionError: if the database is newer than this code.
    """
    if _version(connection, where) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process may have migrated in between.
        for number in range(_version(connection, where), len(MIGRATIONS)):
            # Not executescript: that commits whatever is open first.
            for statement in MIGRATIONS[number].split(";"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, where: str) -> int:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        raise StoreVersionError(
            f"{where} was written by a newer version of latent-memory (store version {found}; this one knows "
            f"up to {len(MIGRATIONS)}). Upgrade with: pip install -U latent-memory"
        )
    return found
