"""Keys: what they open, and that nothing else opens; threads, processes, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory import keys as module
from latent_memory.errors import (
    InputError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreVersionError,
)
from latent_memory.key_file import FILE_NAME, KeyFile
from latent_memory.keys import KeyInfo, KeyRing, id_of

NOW = datetime(2030, 3, 28, 11, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
STALE = "lmem_aaaaaaaaaa_" + "A" * 43


@pytest.fixture
def ring(store: Path) -> Iterator[KeyRing]:
    with KeyRing(store) as opened:
        yield opened


@pytest.fixture
def text(ring: KeyRing) -> str:
    return ring.create("ana")[0]


def raw(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, isolation_level=None))


def python(program: str, *arguments: object) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# -- what a key is ------------------------------------------------------------------------------------------


def test_a_key_opens_what_it_was_made_for(ring: KeyRing) -> None:
    text, info = ring.create(["ana", "bo"], ["app:"], name=" phone ", read_only=True, expires="90d", now=NOW)
    assert re.fullmatch(r"lmem_[a-z2-7]{10}_[A-Za-z0-9_-]{43}", text)
    assert text.split("_")[1] == info.key_id
    assert info == KeyInfo(
        info.key_id, "phone", frozenset({"ana", "bo"}), ("app:",), False, True, NOW, NOW + timedelta(days=90)
    )
    assert ring.verify(text, NOW) == info
    assert ring.list() == [info]
    assert all(map(info.opens, ("ana", "bo", "app:", "app:x")))
    assert not any(map(info.opens, ("an", "anas", "Ana", "app", "x app:", "")))


def test_a_key_for_every_scope(ring: KeyRing) -> None:
    text, info = ring.create(every_scope=True)
    assert (info.scopes, info.prefixes, info.only_scope) == (frozenset(), (), None)
    assert info.opens("anything")
    assert ring.verify(text) == info


def test_the_one_scope_of_a_key_that_has_one(ring: KeyRing) -> None:
    assert ring.create("ana")[1].only_scope == "ana"
    assert ring.create(["ana", "ana"])[1].only_scope == "ana"
    assert ring.create(["ana", "bo"])[1].only_scope is None
    assert ring.create(prefixes=["ana"])[1].only_scope is None
    assert ring.create("ana", "ana")[1].only_scope is None


def test_a_text_alone_is_one_scope_and_no_letters(ring: KeyRing) -> None:
    info = ring.create("ana", "app:")[1]
    assert (info.scopes, info.prefixes) == (frozenset({"ana"}), ("app:",))
    assert not info.opens("a")


SCOPES = st.text(st.sampled_from("ab:é \U0001f600"), min_size=1, max_size=5).filter(lambda text: text.strip())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sets(SCOPES, max_size=4), st.sets(SCOPES, max_size=3), st.lists(st.text(max_size=8) | SCOPES, max_size=10))
def test_a_key_opens_its_scopes_and_prefixes_and_nothing_else(
    ring: KeyRing, scopes: set[str], prefixes: set[str], asked: list[str]
) -> None:
    assume(scopes or prefixes)
    text, _ = ring.create(scopes, prefixes)
    info = ring.verify(text)
    assert info is not None
    for scope in [*asked, *scopes, *prefixes, *(prefix + scope for prefix in prefixes for scope in asked)]:
        assert info.opens(scope) == (scope in scopes or any(scope[: len(each)] == each for each in prefixes)), scope


def test_the_key_is_nowhere_in_the_store_and_its_hash_is(ring: KeyRing, store: Path) -> None:
    text, info = ring.create("ana")
    ring.touch(info.key_id)
    ring.verify(text)
    everything = b"".join(file.read_bytes() for file in store.iterdir())
    assert info.key_id.encode() in everything
    assert hashlib.sha256(text.encode()).digest() in everything
    secret = text[16:]
    for part in (secret, secret[:20], secret[-20:]):
        assert part.encode() not in everything
    assert secret not in repr(info) + repr(ring) + str(info) + repr(vars(ring))


def test_what_is_known_of_a_key_stays_as_it_is(ring: KeyRing) -> None:
    info = ring.create("ana")[1]
    with pytest.raises(FrozenInstanceError):
        info.read_only = True  # type: ignore[misc]
    assert not hasattr(info, "__dict__")


def test_no_two_keys_are_alike(ring: KeyRing) -> None:
    texts = [ring.create("ana")[0] for _ in range(50)]
    assert len({text[5:15] for text in texts}) == len({text[16:] for text in texts}) == 50
    # The secret may hold the mark that ends the id; none of these is misread for it.
    assert any("_" in text[16:] for text in texts)
    for text in texts:
        assert ring.verify(text) is not None


# -- what is no key -----------------------------------------------------------------------------------------


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_key_that_was_changed_anywhere_opens_nothing(ring: KeyRing, text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    letters = st.sampled_from("Aa0_-= \n\t\0é́ａ٣") | st.characters()
    changed = data.draw(
        st.one_of(
            letters.map(lambda letter: text[:at] + letter + text[at:]),
            letters.map(lambda letter: text[:at] + letter + text[at + 1 :]),
            st.just(text[:at] + text[at + 1 :]),
            st.just(text[:at]),
            st.just(text[at:]),
            st.just(text[:at].swapcase() + text[at:]),
            st.just(text[:at].upper() + text[at:]),
            st.just(text + text[:at]),
            st.just(text[at:] + text[:at]),
        )
    )
    assert (ring.verify(changed) is not None) == (changed == text)
    assert ring.verify(text) is not None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text() | st.from_regex(r"lmem_[a-z2-7]{10}_[A-Za-z0-9_-]{43}", fullmatch=True))
@example("")
@example(STALE)
@example(STALE + "\n")
@example("lmem_" * 200_000)
@example("\ud800")
@example(STALE + "\ud800")
def test_what_is_no_key_opens_nothing(ring: KeyRing, text: str) -> None:
    assert ring.verify(text) is None
    ring.create("ana")
    assert ring.verify(text) is None


def test_the_secret_of_another_key_opens_nothing(ring: KeyRing) -> None:
    first, second = (ring.create("ana")[0] for _ in range(2))
    assert ring.verify(first[:16] + second[16:]) is None
    assert ring.verify(second[:16] + first[16:]) is None


def test_an_unknown_id_costs_the_comparison_that_a_known_one_costs(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = ring.create("ana")
    compared: list[tuple[int, int]] = []

    def comparing(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(module, "hmac", type("hmac", (), {"compare_digest": staticmethod(comparing)}))
    for tried in (text, text[:16] + STALE[16:], STALE):
        ring.verify(tried)
    assert compared == [(32, 32)] * 3
    # Also where nothing else would tell it from a known one's.
    monkeypatch.setattr(module, "_NOBODY", hashlib.sha256(STALE.encode()).digest())
    assert ring.verify(STALE) is None


def test_the_id_of_a_key_and_of_nothing_else() -> None:
    assert id_of(STALE) == id_of("aaaaaaaaaa") == "aaaaaaaaaa"
    for text in ("", "aaaaaaaaa", "aaaaaaaaaaa", "aaaaaaaaaA", "aaaaaaaaaa\n", "aaaaaaaaa1", STALE[:-1], STALE + "\n"):
        assert id_of(text) is None, text


# -- its end ------------------------------------------------------------------------------------------------


def test_a_key_ends_when_it_expires(ring: KeyRing) -> None:
    text, info = ring.create("ana", expires=NOW + MINUTE, now=NOW)
    before = NOW + MINUTE - timedelta(microseconds=1)
    assert ring.verify(text, before) == info
    assert info.state(before) == "active"
    for after in (NOW + MINUTE, NOW + timedelta(days=10_000)):
        assert ring.verify(text, after) is None
        assert info.state(after) == "expired"
    # By the clock, which is not there yet.
    assert ring.verify(text) == info


def test_a_key_that_has_expired_by_the_clock(ring: KeyRing) -> None:
    text, info = ring.create("ana", expires="30m", now=datetime.now(UTC) - timedelta(minutes=31))
    assert ring.verify(text) is None
    assert info.state() == "expired"
    assert ring.list() == [info]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("90d", NOW + timedelta(days=90)),
        (" 12h ", NOW + timedelta(hours=12)),
        ("30m", NOW + timedelta(minutes=30)),
        ("2w", NOW + timedelta(weeks=2)),
        (timedelta(seconds=1), NOW + timedelta(seconds=1)),
        ("2031-01-02", datetime(2031, 1, 2, tzinfo=UTC)),
        ("2031-01-02T03:04:05.000006+01:00", datetime(2031, 1, 2, 2, 4, 5, 6, tzinfo=UTC)),
        (datetime(2031, 1, 2), datetime(2031, 1, 2, tzinfo=UTC)),
        (datetime(2031, 1, 2, tzinfo=timezone(timedelta(hours=-5))), datetime(2031, 1, 2, 5, tzinfo=UTC)),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
        (None, None),
    ],
)
def test_when_a_key_expires(ring: KeyRing, given: Any, meant: datetime | None) -> None:
    info = ring.create("ana", expires=given, now=NOW)[1]
    assert info.expires == meant
    assert ring.list()[0].expires == meant


@pytest.mark.parametrize(
    ("given", "told"),
    [
        *((given, "is past") for given in ("2030-03-28T11:00:00", "1999-01-01", NOW, "0d", timedelta(0), -MINUTE)),
        # An empty one comes from a variable that was not set, and must not mean never.
        *((given, "is no time") for given in ("", "  ", "90", "d", "-90d", "90 days", "1d12h", "1.5d", "soon")),
        *((given, "is no time") for given in ("999999w", "9999999d", datetime.max.replace(tzinfo=timezone(-MINUTE)))),
        ("9999-12-31T23:59:59-01:00", "is no time"),
    ],
)
def test_a_key_that_could_not_be_used_is_not_made(ring: KeyRing, given: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"^expires: .* {told}"):
        ring.create("ana", expires=given, now=NOW)
    assert not ring.required


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(ring: KeyRing) -> None:
    text, info = ring.create("ana", expires="90d", now=NOW)
    assert ring.revoke(info.key_id, NOW + MINUTE)
    assert ring.verify(text, NOW + MINUTE) is None
    (told,) = ring.list()
    assert told.revoked == NOW + MINUTE
    assert told.state(NOW) == told.state(NOW + timedelta(days=100)) == "revoked"
    # Again: it is there, and was revoked when it was.
    assert ring.revoke(info.key_id, NOW + 2 * MINUTE)
    assert ring.list() == [told]


def test_revoking_what_is_not_there(ring: KeyRing) -> None:
    assert not ring.revoke("aaaaaaaaaa")
    text, info = ring.create("ana")
    for other in ("aaaaaaaaaa", text, "", "%", info.key_id.upper(), f"{info.key_id} "):
        assert not ring.revoke(other)
    assert ring.verify(text) == info


# -- what cannot be made ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "name at least one scope"),
        ({"scopes": [], "prefixes": []}, "name at least one scope"),
        ({"scopes": [""]}, "scope: '' is no name"),
        ({"scopes": ["ana", " "]}, "scope: ' ' is no name"),
        ({"scopes": [7]}, "scopes: text was expected"),
        ({"scopes": ["\ud800"]}, "half of a surrogate pair"),
        ({"prefixes": [""]}, "begins every name"),
        ({"prefixes": ["app:", "\t"]}, "begins every name"),
        ({"scopes": ["ana"], "every_scope": True}, "goes without"),
        ({"prefixes": ["ana"], "every_scope": True}, "goes without"),
        ({"scopes": map(str, range(501))}, "501 are named"),
        ({"scopes": "ana", "name": "x" * 201}, "201 characters"),
        ({"scopes": "ana", "name": 7}, "name: text was expected"),
    ],
)
def test_a_key_that_makes_no_sense(ring: KeyRing, store: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ring.create(**given)
    assert not store.exists()


# -- the door -----------------------------------------------------------------------------------------------


def test_looking_makes_nothing(ring: KeyRing, store: Path) -> None:
    assert not ring.required
    assert ring.verify(STALE) is None
    assert ring.list() == []
    assert not ring.revoke("aaaaaaaaaa")
    ring.touch("aaaaaaaaaa")
    assert not store.exists()
    store.mkdir()
    assert ring.verify(STALE) is None
    assert list(store.iterdir()) == []


def test_a_file_that_goes_while_one_looks_is_not_made_again(
    ring: KeyRing, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    monkeypatch.setattr(KeyFile, "place", lambda _: (1, 2))
    with pytest.raises(StoreError, match="unable to open"):
        ring.verify(STALE)
    assert list(store.iterdir()) == []


def test_a_key_that_another_made_is_noticed(ring: KeyRing, store: Path) -> None:
    assert not ring.required
    assert ring.verify(STALE) is None
    with KeyRing(store) as other:
        text, info = other.create("ana")
    assert ring.verify(text) == info
    assert ring.required


def test_revoking_the_last_key_opens_nothing(ring: KeyRing, store: Path) -> None:
    text, info = ring.create("ana")
    assert ring.required
    ring.revoke(info.key_id)
    assert ring.required
    with KeyRing(store) as again:
        assert again.required
        assert again.verify(text) is None
        # And a new one can be made.
        assert again.verify(again.create("ana")[0]) is not None


def test_a_file_that_was_emptied_opens_nothing(store: Path) -> None:
    with KeyRing(store) as ring:
        text, _ = ring.create("ana")
    (store / FILE_NAME).write_bytes(b"")
    with KeyRing(store) as ring:
        assert ring.required
        assert ring.verify(text) is None
        assert ring.list() == []
        assert not ring.revoke(text[5:15])
        new, info = ring.create("bo")
        assert ring.verify(new) == info


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no file that is open")
def test_a_file_that_is_removed_shuts_the_door_of_who_is_running(store: Path) -> None:
    with KeyRing(store) as ring:
        text, info = ring.create("ana")
        assert ring.verify(text) == info
        for file in store.glob("keys.sqlite*"):
            file.unlink()
        assert ring.required
        assert ring.verify(text) is None
        ring.touch(info.key_id)
        assert not (store / FILE_NAME).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is open")
def test_a_backup_that_was_put_back_counts_at_once(store: Path, tmp_path: Path) -> None:
    with KeyRing(store) as ring:
        old, old_info = ring.create("ana")
    backup = (store / FILE_NAME).read_bytes()
    with KeyRing(store) as ring:
        new, new_info = ring.create("bo")
        ring.revoke(old_info.key_id)
        assert ring.verify(new) == new_info
        put_back = tmp_path / "backup"
        put_back.write_bytes(backup)
        for file in store.glob("keys.sqlite-*"):
            file.unlink()
        put_back.replace(store / FILE_NAME)
        assert ring.verify(new) is None
        assert ring.verify(old) == old_info
        assert ring.list() == [old_info]
        ring.touch(old_info.key_id, NOW)
        assert ring.list()[0].last_used == NOW


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_only_the_owner_may_read_it(ring: KeyRing, store: Path) -> None:
    before = os.umask(0)
    try:
        text, info = ring.create("ana")
    finally:
        os.umask(before)
    ring.verify(text)
    ring.touch(info.key_id)
    modes = {file.name: file.stat().st_mode & 0o777 for file in store.iterdir()}
    assert modes == dict.fromkeys(["keys.sqlite", "keys.sqlite-shm", "keys.sqlite-wal"], 0o600)


def test_a_path_with_marks_that_addresses_have(tmp_path: Path) -> None:
    with KeyRing(tmp_path / "50% #1 ä") as ring:
        text, info = ring.create("ana")
        assert ring.verify(text) == info
    assert (tmp_path / "50% #1 ä" / FILE_NAME).is_file()


def test_a_path_from_here_holds_when_one_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with KeyRing("store") as ring:
        text, info = ring.create("ana")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert ring.verify(text) == info


# -- what is not what it should be --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory.h5", "memory.pkl", "memory"])
def test_keys_need_a_store(tmp_path: Path, name: str) -> None:
    layout = None if "." in name else "npy_json"
    path = tmp_path / name
    with LatentMemory.open(path, embedder="hashing", format=layout) as memory:
        memory.add(Conversation("a", [Turn("user", "Hello there")]))
        assert memory.in_file
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"keys need a store; make one with: latent-memory convert"):
        KeyRing(path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_keys_lie_beside_a_memory(memory: LatentMemory, store: Path) -> None:
    with KeyRing(store) as ring:
        text, info = ring.create("default")
        memory.add(Conversation("a", [Turn("user", "Hello there")]))
        assert ring.verify(text) == info
    with LatentMemory.open(store, create=False) as again:
        assert again.recall("hello")[0].passage.text == "Hello there"


def test_a_memory_can_come_after_its_keys(store: Path) -> None:
    with KeyRing(store) as ring:
        text, _ = ring.create("default")
        with LatentMemory.open(store, embedder="hashing") as memory:
            memory.add(Conversation("a", [Turn("user", "Hello there")]))
        assert ring.verify(text) is not None


def test_a_newer_version_is_refused(ring: KeyRing, store: Path) -> None:
    text, _ = ring.create("ana")
    with raw(ring.path) as connection:
        connection.execute("PRAGMA user_version = 2")
    with KeyRing(store) as again:
        assert again.required
        for call in everything(again, text):
            with pytest.raises(StoreVersionError, match=r"version 2; this one knows up to 1.*pip install -U"):
                call()


def everything(ring: KeyRing, text: str) -> list[Callable[[], object]]:
    """Return all that can be done with a ring; each touch is of another key, so that it is not left out."""
    return [lambda: ring.verify(text), lambda: ring.touch(text[5:15]), ring.list, *changes(ring, text)]


def changes(ring: KeyRing, text: str) -> list[Callable[[], object]]:
    return [lambda: ring.create("ana"), lambda: ring.revoke(text[5:15])]


def test_another_programs_database_is_refused_and_left_alone(store: Path) -> None:
    store.mkdir()
    with raw(store / FILE_NAME) as connection:
        connection.execute("CREATE TABLE keys (key_id TEXT, digest BLOB)")
    before = (store / FILE_NAME).read_bytes()
    with KeyRing(store) as ring:
        assert ring.required
        for call in everything(ring, STALE):
            with pytest.raises(StoreDamagedError, match=r"another program's database.*Restore the file from a backup"):
                call()
    assert (store / FILE_NAME).read_bytes() == before


def test_a_damaged_file_says_what_to_do_and_opens_nothing(store: Path) -> None:
    with KeyRing(store) as ring:
        text, _ = ring.create("ana")
    (store / FILE_NAME).write_bytes(b"no database" * 1_000)
    with KeyRing(store) as ring:
        assert ring.required
        for call in everything(ring, text):
            with pytest.raises(
                StoreDamagedError, match="Restore the file from a backup, or move it away and create"
            ) as e:
                call()
            # Neither in the message nor in what a log would show of it.
            assert text[16:] not in "".join(traceback.format_exception(e.value))


@pytest.mark.parametrize(
    ("column", "value"),
    # The text "ana" is a sequence of texts, too.
    [("scopes", '"ana"'), ("scopes", "[1]"), ("prefixes", "{"), ("created", "soon"), ("expires", 1 << 62)],
)
def test_a_row_that_cannot_be_read_opens_nothing(ring: KeyRing, column: str, value: object) -> None:
    text, info = ring.create("ana")
    with raw(ring.path) as connection:
        connection.execute(f"UPDATE keys SET {column} = ?", (value,))
    for call in (lambda: ring.verify(text), ring.list):
        with pytest.raises(StoreDamagedError, match=r"cannot be read.*Restore"):
            call()
    assert ring.revoke(info.key_id)


def test_a_directory_in_its_place(store: Path) -> None:
    (store / FILE_NAME).mkdir(parents=True)
    with KeyRing(store) as ring:
        assert ring.required
        for call in (lambda: ring.verify(STALE), ring.list, *changes(ring, STALE)):
            with pytest.raises(StoreError, match=re.escape(str(ring.path))):
                call()


@pytest.mark.skipif(os.name == "nt", reason="Windows wants to know more before it makes a link")
def test_a_link_that_leads_nowhere(store: Path) -> None:
    store.mkdir()
    (store / FILE_NAME).symlink_to(store / "elsewhere")
    with KeyRing(store) as ring, pytest.raises(StoreError, match="a link that leads nowhere"):
        ring.create("ana")
    assert not (store / "elsewhere").exists()


def test_a_place_where_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with KeyRing(tmp_path / "file" / "store") as ring:
        assert not ring.required
        with pytest.raises(StoreError, match="cannot write"):
            ring.create("ana")
    with pytest.raises(StoreError, match="cannot look into"):
        KeyRing("a\0b")


def test_a_full_disk_keeps_no_half_a_key(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    text, info = ring.create("ana")
    connect = KeyFile._connect

    def on_a_full_disk(self: KeyFile, **settings: Any) -> sqlite3.Connection | None:
        connection = connect(self, **settings)
        if connection is not None:
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    def fill() -> None:
        for _ in range(100):
            ring.create([f"a rather long name of a scope {i}" for i in range(100)])

    with monkeypatch.context() as patched:
        patched.setattr(KeyFile, "_connect", on_a_full_disk)
        with pytest.raises(StoreFullError, match="No key was created or revoked; free some space"):
            fill()
        made = ring.list()
        assert ring.verify(text) == info
    assert all(ring.revoke(each.key_id) for each in made)


def test_a_closed_ring_says_so(store: Path) -> None:
    with KeyRing(store) as ring:
        text, _ = ring.create("ana")
        assert ring.verify(text)
    for call in everything(ring, text):
        with pytest.raises(StoreError, match="were closed; open them again"):
            call()
    ring.close()


# -- the last use -------------------------------------------------------------------------------------------


def test_the_last_use_is_written_once_a_minute(ring: KeyRing) -> None:
    _, info = ring.create("ana")
    other = ring.create("bo")[1]

    def last() -> list[datetime | None]:
        return [each.last_used for each in sorted(ring.list(), key=lambda each: each.key_id != info.key_id)]

    ring.touch(info.key_id, NOW)
    assert last() == [NOW, None]
    for seconds in (0, 1, 59.9):
        ring.touch(info.key_id, NOW + timedelta(seconds=seconds))
    assert last() == [NOW, None]
    ring.touch(other.key_id, NOW + timedelta(seconds=30))
    ring.touch(info.key_id, NOW + MINUTE)
    assert last() == [NOW + MINUTE, NOW + timedelta(seconds=30)]
    # What another process wrote later stays.
    with KeyRing(ring.path.parent) as process:
        process.touch(info.key_id, NOW)
    assert last()[0] == NOW + MINUTE


def test_touching_under_load_writes_nothing(ring: KeyRing) -> None:
    text, info = ring.create("ana")
    ring.touch(info.key_id, NOW)
    with raw(ring.path) as watcher:
        before = watcher.execute("PRAGMA data_version").fetchone()
        for i in range(1_000):
            assert ring.verify(text) is not None
            ring.touch(info.key_id, NOW + timedelta(milliseconds=i))
        assert watcher.execute("PRAGMA data_version").fetchone() == before


def test_the_last_use_by_the_clock(ring: KeyRing) -> None:
    _, info = ring.create("ana")
    before = datetime.now(UTC)
    ring.touch(info.key_id)
    last = ring.list()[0].last_used
    assert last is not None
    assert before <= last <= datetime.now(UTC)


def test_while_another_process_writes_keys_are_read_and_uses_left_out(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, info = ring.create("ana")
    with raw(ring.path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE keys SET revoked = 1")
        # Not waiting for the end of this, which the test would not see.
        ring.touch(info.key_id, NOW)
        assert ring.verify(text) == info
        noting = ring._file._noting.connection
        assert noting is not None
        assert noting.execute("PRAGMA busy_timeout").fetchone() == (0,)
        monkeypatch.setattr("latent_memory.key_file.BUSY_SECONDS", 0.0)
        for change in changes(ring, text):
            with pytest.raises(StoreBusyError):
                change()
        other.execute("ROLLBACK")
    ring.touch(info.key_id, NOW + MINUTE)
    assert ring.list()[0].last_used == NOW + MINUTE


# -- threads and processes ----------------------------------------------------------------------------------


def test_threads_create_verify_touch_and_revoke_at_once(ring: KeyRing) -> None:
    threads, rounds = 8, 15
    wrong: list[object] = []
    begin = threading.Barrier(threads)

    def work(number: int) -> None:
        begin.wait()
        try:
            for i in range(rounds):
                scope = f"{number}-{i}"
                text, info = ring.create(scope)
                if ring.verify(text) != info or not info.opens(scope):
                    wrong.append((scope, "is not known"))
                ring.touch(info.key_id)
                if i % 3 == 0:
                    if not ring.revoke(info.key_id):
                        wrong.append((scope, "is not there"))
                    if ring.verify(text) is not None:
                        wrong.append((scope, "was revoked"))
        except BaseException as error:
            wrong.append(error)
            raise

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert wrong == []
    found = ring.list()
    assert {info.only_scope for info in found} == {f"{n}-{i}" for n in range(threads) for i in range(rounds)}
    assert sum(info.revoked is not None for info in found) == threads * 5


CREATOR = """
import sys
from latent_memory.keys import KeyRing
with KeyRing(sys.argv[1]) as ring:
    sys.stdin.readline()
    for i in range(20):
        print(ring.create(f"{sys.argv[2]}-{i}")[0])
"""


def test_processes_that_make_the_first_keys_at_once(ring: KeyRing, store: Path) -> None:
    pipes: dict[str, Any] = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "text": True}
    started = [subprocess.Popen([sys.executable, "-c", CREATOR, store, name], **pipes) for name in ("p", "q", "r")]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    texts = []
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        texts += out.split()
    assert len(texts) == len(ring.list()) == 60
    assert all(ring.verify(text) is not None for text in texts)


def test_what_another_process_revokes_is_refused_at_once(ring: KeyRing, store: Path) -> None:
    program = """
import sys
from latent_memory.keys import KeyRing
with KeyRing(sys.argv[1]) as ring:
    for line in sys.stdin:
        print(ring.revoke(line.strip()), flush=True)
"""
    keys = [ring.create("ana") for _ in range(10)]
    with subprocess.Popen(
        [sys.executable, "-c", program, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for number, (text, info) in enumerate(keys):
            assert ring.verify(text) == info
            other.stdin.write(f"{info.key_id}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "True\n"
            assert [ring.verify(each) is not None for each, _ in keys] == [i > number for i in range(10)]
        other.stdin.close()
        assert other.wait(timeout=60) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_may_go_on_using_it(store: Path) -> None:
    # In a process of its own: pytest's threads and forks do not go together.
    program = """
import os, sys
from latent_memory.keys import KeyRing
ring = KeyRing(sys.argv[1])
text, info = ring.create("ana")
assert ring.verify(text) == info
ring.touch(info.key_id)
held = ring._file._reading.connection
child = os.fork()
if child == 0:
    assert ring.verify(text).key_id == info.key_id
    assert held is not None and ring._file._reading.connection is not held
    more, _ = ring.create("bo")
    assert ring.verify(more) is not None
    ring.revoke(info.key_id)
    ring.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert ring.verify(text) is None
assert len(ring.list()) == 2
ring.close()
print("done")
"""
    assert python(program, store) == "done"


def test_a_process_that_ends_without_closing_it_leaves_it_whole(store: Path) -> None:
    program = "import os, sys; from latent_memory.keys import KeyRing; print(KeyRing(sys.argv[1]).create('ana')[0])"
    text = python(program, store)
    with KeyRing(store) as ring, raw(ring.path) as connection:
        assert ring.verify(text) is not None
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
