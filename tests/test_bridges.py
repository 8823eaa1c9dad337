"""`latent-memory bridge`: soft tokens through the command line, and what `forget` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from latent_memory import Conversation, LatentMemory, Turn, bridges
from latent_memory.errors import DerivedError, InputError
from latent_memory.inference.lora import Adapter
from tiny_model import saved, tiny_model

pytest.importorskip("transformers")

Cli = Callable[..., CompletedProcess[str]]
QUICK = ("--reading", 2, "--answering", 1, "--soft", 2, "--keywords", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_model(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def filled(store: Path) -> Path:
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add(
            Conversation(
                f"c{i}", [Turn("user", f"In week {i} we planted {n} trees of the kind {n}{i}.") for n in range(4)]
            )
            for i in range(10)
        )
    return store


def test_a_bridge_is_trained_and_used(cli: Cli, filled: Path, model: Path) -> None:
    trained = cli("bridge", "--store", filled, "--model", model, "--json", *QUICK)
    assert trained.returncode == 0, trained.stderr
    told = json.loads(trained.stdout)
    assert told["passages"] == 40
    assert told["steps"] == {"reading": 2, "answering": 1}
    directory = filled / "adapters" / "bridge-default"
    assert Path(told["directory"]) == directory
    assert {path.name for path in directory.iterdir()} >= {bridges.FILE, "latent_memory.json"}
    chat = ["chat", "--store", filled, "--model", model, "--no-save", "--json", "--max-tokens", 2, "--mode"]
    soft, text = (json.loads(cli(*chat, mode, stdin=b"What did we plant?\n").stdout) for mode in ("soft", "prompt"))
    assert soft["memory"] == text["memory"] != []
    assert soft["read"] < text["read"]
    again = cli("bridge", "--store", filled, "--model", model, *QUICK, "--fresh")
    assert "trained on 40 passages" in again.stdout


def test_forget_tells_which_bridges_have_seen_it(cli: Cli, filled: Path, model: Path) -> None:
    assert cli("bridge", "--store", filled, "--model", model, *QUICK).returncode == 0
    told = cli("forget", "c1", "--store", filled)
    assert "bridge-default" in told.stderr
    assert "4 turns that are forgotten" in told.stderr


def test_a_bridge_kept_elsewhere_is_known_too(cli: Cli, filled: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    assert cli("bridge", "--store", filled, "--model", model, "--out", out, *QUICK).returncode == 0
    assert str(out) in cli("forget", "c2", "--store", filled).stderr
    # It is a bridge, and no adapter.
    with pytest.raises(DerivedError, match="--mode soft"):
        Adapter.load(out, tiny_model())


def test_what_cannot_be_trained_on_is_told(cli: Cli, filled: Path, model: Path, store: Path) -> None:
    nothing = cli("bridge", "--store", filled, "--scope", "empty", "--model", model)
    assert nothing.returncode == 1
    with LatentMemory.open(store) as memory:
        memory.add(Conversation("one", [Turn("user", "Hello.")]), "small")
        with pytest.raises(InputError, match="too few to train on"):
            bridges.train(memory, tiny_model(), store / "b", scope="small")
    without = cli("chat", "--store", filled, "--model", model, "--mode", "soft", stdin=b"Hi?\n")
    assert without.returncode == 2
    assert "train a bridge first" in without.stderr
