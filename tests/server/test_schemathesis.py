"""What the description promises holds for requests that nobody thought of: Schemathesis makes them from it.

No answer is a server error, and each has a status, a type and a body as described.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from latent_memory import Conversation, LatentMemory, Turn
from latent_memory.server.app import create_app
from latent_memory.server.settings import Settings

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
# Their answers are OpenAI's, an upstream's, or MCP's; tests of their own ask them.
OTHERS = ("/mcp", "/v1/chat", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/completions")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store: Path = tmp_path_factory.mktemp("api") / "store"
    with LatentMemory.open(store, embedder="hashing") as memory:
        memory.add([Conversation("trip", [Turn("user", "When do we fly?"), Turn("assistant", "On 8 May.")])])
        memory.add([Conversation(str(i), [Turn("user", f"Said {i}.")]) for i in range(20)])
        # The name that its client calls a server by.
        app = create_app(memory, Settings(rate=0, hosts=(asgi.HOST,)))
        yield schemathesis.openapi.from_asgi("/openapi.json", app)
        asgi.shutdown_lifespans()


def test_no_request_breaks_what_is_described(api: Any) -> None:
    """Not with its own pytest plugin, of which versions are broken by versions of pytest."""
    asked = 0
    for found in api.get_all_operations():
        operation = found.ok()
        if operation.path.startswith(OTHERS):
            continue
        for mode, examples in ((GenerationMode.POSITIVE, 20), (GenerationMode.NEGATIVE, 20)):
            # There is nothing wrong that could be asked where nothing can be said.
            with contextlib.suppress(Unsatisfiable):
                asked += _ask(operation.as_strategy(generation_mode=mode), examples)
        if "{conversation_id}" in operation.path:
            there = {"path_parameters": {"conversation_id": "trip"}, "headers": {}}
            asked += _ask(operation.as_strategy(**there), 20)
    assert asked > 400


def _ask(strategy: Any, examples: int) -> int:
    asked = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=CHECKS)

    ask()
    return asked
