"""The server in this process, and as a process of its own."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_openai import FakeOpenAI
from latent_memory import LatentMemory
from latent_memory.keys import KeyRing
from latent_memory.server.app import create_app
from latent_memory.server.settings import Settings
from served import Served

Serve = Callable[..., Served]
MakeClient = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def _no_upstream_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENT_MEMORY_UPSTREAM_KEY", raising=False)


@pytest.fixture
def upstream() -> Iterator[FakeOpenAI]:
    """Return a server of the OpenAI API to send chats on to."""
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return what starts `latent-memory serve`; all that were started are stopped at the end of the test.

    serve(store=None, args=(), env=None, embedder="hashing") -> Served, with `url`, `process`, `log_path`, `log()`,
    `stop()`. Without a store, each server gets its own.
    """
    numbers = itertools.count(1)
    with contextlib.ExitStack() as stack:

        def start(
            store: Path | None = None,
            args: Sequence[object] = (),
            env: Mapping[str, str] | None = None,
            *,
            embedder: str | None = "hashing",
        ) -> Served:
            number = next(numbers)
            place = store if store is not None else tmp_path / f"served-{number}"
            log_path = tmp_path / f"serve-{number}.log"
            return stack.enter_context(Served(place, args, env, log_path=log_path, embedder=embedder))

        yield start


@pytest.fixture
def make_client(memory: LatentMemory) -> Iterator[MakeClient]:
    """Return what makes a client of an application in this process, over the fixture `memory`.

    make_client(keys=None, **settings) -> TestClient. What it asks goes through everything that stands before the
    doors; answers are read whole. The service is `client.app.state.service`.
    """
    with contextlib.ExitStack() as stack:

        def make(keys: KeyRing | None = None, **settings: Any) -> TestClient:
            app = create_app(memory, Settings(**settings), keys)
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1:8765", follow_redirects=False))

        yield make


@pytest.fixture
def app_client(make_client: MakeClient) -> TestClient:
    """Return a client of an application without upstream and keys, over the fixture `memory`."""
    return make_client()


@pytest.fixture
def keys(store: Path, memory: LatentMemory) -> Iterator[KeyRing]:
    """Return the keys of the fixture `memory`; give it to `make_client`."""
    with KeyRing(store) as ring:
        yield ring
