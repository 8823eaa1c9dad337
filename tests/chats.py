"""Chats to send to a server, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from latent_memory import LatentMemory

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
KEY = {"Authorization": "Bearer sk-of-the-client"}
QUESTION = "What is my dog called?"


def asked(question: str = QUESTION, **more: Any) -> dict[str, Any]:
    """Return the body of a request."""
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": question}], **more}


def told(memory: LatentMemory, scope: str = "default") -> list[list[str]]:
    """Return what was said in each conversation, but for the one that tests add."""
    return [[turn.text for turn in c.turns] for c in memory.whole(scope=scope) if c.conversation_id != "trip/1"]


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
