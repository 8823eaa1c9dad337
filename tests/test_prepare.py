"""`latent-memory prepare`: keys and values ahead of time, and what `forget` leaves of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from latent_memory import Conversation, LatentMemory, Turn
from tiny_model import saved, tiny_model

pytest.importorskip("transformers")

Cli = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_model(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def filled(store: Path) -> Path:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(Conversation(f"c{i}", [Turn("user", f"In week {i} we planted a tree.")]) for i in range(3))
    return store


def blocks(store: Path) -> list[Path]:
    return sorted((store / "blocks").rglob("*.safetensors"))


def test_what_is_there_is_not_computed_again(cli: Cli, filled: Path, model: Path) -> None:
    given = ["prepare", "--store", filled, "--model", model]
    first = cli(*given)
    assert first.returncode == 0
    assert "3 conversations computed" in first.stdout
    assert len(blocks(filled)) == 3
    again = json.loads(cli(*given, "--json").stdout)
    size = sum(path.stat().st_size for path in blocks(filled))
    assert again == {"conversations": 3, "tokens": 0, "bytes": size, "full": False}
    cli("forget", "c1", "--store", filled)
    assert len(blocks(filled)) == 2
    cli("forget", "--all", "--store", filled)
    assert blocks(filled) == []


def test_a_chat_reads_only_what_is_new(cli: Cli, filled: Path, model: Path) -> None:
    asked = ["chat", "--store", filled, "--model", model, "--no-save", "--json", "--max-tokens", 2, "--mode"]
    cli("prepare", "--store", filled, "--model", model)
    text, kv = (json.loads(cli(*asked, mode, stdin=b"What did we plant?\n").stdout) for mode in ("prompt", "kv"))
    assert kv["memory"] == text["memory"] != []
    # The head was read for this process, and the question; the memory was not.
    assert kv["read"] < text["read"]


def test_the_limit_ends_it(cli: Cli, filled: Path, model: Path) -> None:
    told = cli("prepare", "--store", filled, "--model", model, "--limit", "0.000001")
    assert told.returncode == 0
    assert "the limit of 1e-06 GB is reached" in told.stderr
    assert len(blocks(filled)) < 3


def test_what_cannot_be_prepared_is_told(cli: Cli, filled: Path, model: Path, tmp_path: Path) -> None:
    nothing = cli("prepare", "--store", filled, "--scope", "empty", "--model", model)
    assert (nothing.returncode, nothing.stderr) == (1, "no conversations in scope 'empty'\n")
    file = tmp_path / "memory.pkl"
    assert cli("convert", filled, file).returncode == 0
    told = cli("prepare", "--store", file, "--model", model)
    assert told.returncode == 2
    assert "convert it to a store first" in told.stderr
    assert cli("prepare", "--store", filled, "--model", tmp_path / "none").returncode == 2
