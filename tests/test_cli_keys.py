"""`latent-memory keys`: what it prints and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.keys import PREFIX, KeyRing
from latent_memory.server import access

Cli = Callable[..., CompletedProcess[str]]

INFO_KEYS = [
    *("created", "every_scope", "expires", "key_id", "last_used", "name", "prefixes", "read_only", "revoked", "scopes"),
    "state",
]


def create(cli: Cli, store: Path, *arguments: str) -> str:
    result = cli("keys", "create", "--store", store, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.removesuffix("\n")


def listed(cli: Cli, store: Path) -> list[dict[str, Any]]:
    result = cli("keys", "list", "--store", store, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def refused(result: CompletedProcess[str], *told: str) -> None:
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1, result.stderr
    for each in told:
        assert each in result.stderr


# -- create -------------------------------------------------------------------------------------------------


def test_create_prints_the_key_alone_and_a_note_beside_it(cli: Cli, store: Path) -> None:
    arguments = ("--scope", "bo", "--scope", "ana", "--scope-prefix", "app:", "--read-only", "--expires", "2999-01-02")
    result = cli("keys", "create", "--store", store, *arguments, "--name", "phone")
    assert result.returncode == 0
    key = result.stdout.removesuffix("\n")
    assert key.startswith("lmem_")
    assert len(key) == 59
    assert result.stderr == (
        f"key {key[5:15]}: opens ana, bo, app:*, read only, until 2999-01-02 00:00 UTC. "
        "It is shown this once only: keep it where nobody else reads it\n"
    )
    with KeyRing(store) as ring:
        info = ring.verify(key)
    assert info is not None
    assert (sorted(info.scopes), info.prefixes, info.read_only) == (["ana", "bo"], ("app:",), True)
    assert (info.expires, info.name) == (datetime(2999, 1, 2, tzinfo=UTC), "phone")


def test_a_shell_gets_the_key_into_a_variable(store: Path) -> None:
    program = str(Path(sys.executable).with_name("latent-memory"))
    command = [program, "keys", "create", "--all-scopes", "--store", str(store)]
    key = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    with KeyRing(store) as ring:
        assert ring.verify(key) is not None
        assert ring.list()[0].every_scope


def test_create_json_tells_all_of_it(cli: Cli, store: Path) -> None:
    result = cli("keys", "create", "--scope", "ana", "--expires", "90d", "--store", store, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert sorted(told) == sorted([*INFO_KEYS, "key"])
    key = told.pop("key")
    assert [told] == listed(cli, store)
    assert (told["scopes"], told["prefixes"], told["every_scope"], told["read_only"]) == (["ana"], [], False, False)
    assert (told["state"], told["last_used"], told["revoked"], told["name"]) == ("active", None, None, None)
    made, ends = (datetime.fromisoformat(told[name]) for name in ("created", "expires"))
    assert ends - made == timedelta(days=90)
    with KeyRing(store) as ring:
        assert ring.verify(key) is not None


def test_a_key_can_come_before_the_memory(cli: Cli, store: Path) -> None:
    """With the default embedder, as a server's owner would."""
    key = create(cli, store, "--scope", "default")
    assert cli("stats", "--store", store).returncode == 0
    with LatentMemory.open(store, create=False) as memory, KeyRing(store) as ring:
        memory.add(Conversation("a", [Turn("user", "The boat leaves at noon."), Turn("assistant", "Fine.")]))
        assert memory.recall("when do we sail?", k=1)[0].passage.text == "The boat leaves at noon."
        assert ring.verify(key) is not None


def test_a_key_for_a_memory_that_is_there(cli: Cli, memory: LatentMemory, store: Path) -> None:
    memory.add(Conversation("a", [Turn("user", "Hello there")]))
    create(cli, store, "--scope", "default")
    assert memory.recall("hello")[0].passage.text == "Hello there"
    assert memory.embedder.name == "hashing"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--scope NAME, --scope-prefix PREFIX or --all-scopes (see latent-memory keys create --help)"),
        (("--read-only", "--name", "x"), "--scope NAME"),
        (("--all-scopes", "--scope", "ana"), "--all-scopes: goes without --scope"),
        (("--all-scopes", "--scope-prefix", "ana"), "--all-scopes: goes without --scope"),
        (("--scope", ""), "scope: '' is no name"),
        (("--scope-prefix", ""), "begins every name"),
        (("--scope", "ana", "--expires", "2020-01-01"), "'2020-01-01' is past"),
        (("--scope", "ana", "--expires", ""), "expires: '' is no time"),
        (("--scope", "ana", "--expires", "soon"), "expires: 'soon' is no time; give ISO 8601"),
    ],
)
def test_a_key_that_makes_no_sense_changes_nothing(
    cli: Cli, store: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused(cli("keys", "create", "--store", store, *arguments), told)
    assert not store.exists()


def test_a_scope_must_be_named_on_the_command_line(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_MEMORY_SCOPE", "ana")
    refused(cli("keys", "create", "--store", store), "--scope NAME")
    monkeypatch.setenv("LATENT_MEMORY_STORE", str(store))
    assert cli("keys", "create", "--scope", "bo").returncode == 0
    assert listed(cli, store)[0]["scopes"] == ["bo"]


@pytest.mark.parametrize("command", [("create", "--scope", "ana"), ("list",), ("revoke", "aaaaaaaaaa")])
def test_keys_need_a_store(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "memory.h5"
    with LatentMemory.open(path, embedder="hashing") as memory:
        memory.add(Conversation("a", [Turn("user", "Hello there")]))
    before = path.read_bytes()
    refused(cli("keys", *command, "--store", path), "keys need a store", "latent-memory convert")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


# -- list ---------------------------------------------------------------------------------------------------


def test_list_tells_all_of_each_key_but_not_the_key(cli: Cli, store: Path) -> None:
    keys = [
        create(cli, store, "--scope", "ana", "--read-only", "--name", "dash\tboard"),
        create(cli, store, "--scope-prefix", "app:", "--expires", "12h"),
        create(cli, store, "--all-scopes"),
    ]
    with KeyRing(store) as ring:
        ring.touch(keys[0][5:15], datetime(2999, 3, 28, 11, 7, tzinfo=UTC))
    assert cli("keys", "revoke", keys[2][5:15], "--store", store).returncode == 0
    result = cli("keys", "list", "--store", store)
    assert (result.returncode, result.stderr) == (0, "")
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["id", "state", "access", "created", "expires", "last", "used", "scopes", "name"]
    assert [row.split()[0] for row in rows] == [key[5:15] for key in keys]
    first, second, third = rows
    assert first[head.index("last used") :].split() == ["2999-03-28", "11:07", "ana", "dash", "board"]
    assert first[head.index("state") : head.index("created")].split() == ["active", "read"]
    assert second[head.index("state") : head.index("created")].split() == ["active", "read,", "write"]
    assert second[head.index("scopes") :] == "app:*"
    assert "never" not in second[head.index("expires") : head.index("last used")]
    assert third[head.index("state") :].split()[0] == "revoked"
    assert third[head.index("scopes") :] == "every scope"
    for key in keys:
        assert key[16:] not in result.stdout + json.dumps(listed(cli, store))


def test_list_tells_which_have_expired(cli: Cli, store: Path) -> None:
    with KeyRing(store) as ring:
        ring.create("ana", expires="30m", now=datetime.now(UTC) - timedelta(hours=1))
    (told,) = listed(cli, store)
    assert sorted(told) == INFO_KEYS
    assert told["state"] == "expired"


def test_a_store_without_keys(cli: Cli, memory: LatentMemory, store: Path) -> None:
    result = cli("keys", "list", "--store", store)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "no keys; create one with: latent-memory keys create\n"
    result = cli("keys", "list", "--store", store, "--json")
    assert (result.returncode, result.stdout, result.stderr) == (1, "[]\n", "")
    assert not (store / "keys.sqlite").exists()


@pytest.mark.parametrize("command", [("list",), ("revoke", "aaaaaaaaaa")])
def test_no_memory_at_all(cli: Cli, store: Path, command: tuple[str, ...]) -> None:
    refused(cli("keys", *command, "--store", store), f"no memory at {store}", "--store")
    assert not store.exists()


# -- revoke -------------------------------------------------------------------------------------------------


def test_revoke(cli: Cli, store: Path) -> None:
    keys = [create(cli, store, "--scope", "ana") for _ in range(3)]
    first, second, third = (key[5:15] for key in keys)
    with KeyRing(store) as ring:
        assert ring.verify(keys[0]) is not None
        result = cli("keys", "revoke", first, second, first, "--store", store)
        assert (result.returncode, result.stdout, result.stderr) == (0, "2 keys revoked\n", "")
        assert [ring.verify(key) is not None for key in keys] == [False, False, True]
        assert ring.required
    assert [each["state"] for each in listed(cli, store)] == ["revoked", "revoked", "active"]
    result = cli("keys", "revoke", third, "aaaaaaaaaa", "--store", store)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 key revoked\n", "no key 'aaaaaaaaaa'\n")


def test_revoke_what_is_not_there(cli: Cli, store: Path) -> None:
    create(cli, store, "--scope", "ana")
    result = cli("keys", "revoke", "aaaaaaaaaa", "--store", store)
    assert (result.returncode, result.stdout, result.stderr) == (1, "0 keys revoked\n", "no key 'aaaaaaaaaa'\n")
    result = cli("keys", "revoke", "aaaaaaaaaa", "--store", store, "--json")
    assert (result.returncode, json.loads(result.stdout)) == (1, {"revoked": 0, "not_found": ["aaaaaaaaaa"]})
    refused(cli("keys", "revoke", "--store", store), "ID...")


def test_revoke_takes_a_key_that_leaked_and_repeats_none(cli: Cli, store: Path) -> None:
    key = create(cli, store, "--scope", "ana")
    # Most of a key, as one copies it.
    for part in (key[:-1], key[16:], key[3:], key + "x"):
        result = cli("keys", "revoke", part, "--store", store)
        assert result.returncode == 1
        assert key[28:40] not in result.stdout + result.stderr
    result = cli("keys", "revoke", key, key[5:15], "--store", store)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1 key revoked\n", "")
    assert listed(cli, store)[0]["state"] == "revoked"


def test_keys_can_be_revoked_where_the_memory_is_damaged(cli: Cli, store: Path) -> None:
    key = create(cli, store, "--scope", "ana")
    (store / "memory.sqlite").write_bytes(b"no database" * 1_000)
    assert cli("stats", "--store", store).returncode == 2
    assert len(listed(cli, store)) == 1
    assert cli("keys", "revoke", key[5:15], "--store", store).returncode == 0


def test_damaged_keys_are_one_line(cli: Cli, store: Path) -> None:
    create(cli, store, "--scope", "ana")
    (store / "keys.sqlite").write_bytes(b"no database" * 1_000)
    for command in (("list",), ("create", "--scope", "ana"), ("revoke", "aaaaaaaaaa")):
        refused(cli("keys", *command, "--store", store), str(store / "keys.sqlite"), "Restore the file from a backup")


# -- the help and the page ----------------------------------------------------------------------------------


def test_keys_alone_tells_what_there_is(cli: Cli) -> None:
    result = cli("keys")
    assert (result.returncode, result.stdout) == (2, "")
    for command in ("create", "list", "revoke"):
        assert f"\n  {command} " in result.stderr
        assert cli("keys", command, "--help").returncode == 0


def test_the_page_names_the_headers_that_the_server_reads() -> None:
    page = (Path(__file__).parents[1] / "docs" / "keys.md").read_text(encoding="utf-8")
    assert f"\n{access.KEY_HEADER}: {PREFIX}" in page
    assert f"\nAuthorization: Bearer {PREFIX}" in page
