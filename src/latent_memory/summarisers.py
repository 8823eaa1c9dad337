"""A user's own summariser, by name: a language model asked over an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable

from latent_memory.errors import EmbedderUnavailableError, InputError
from latent_memory.openai_api import post
from latent_memory.records import Conversation

_ASK = (
    "Summarise the conversation in one or two sentences, at most 300 characters. Name who, what and when. "
    "Answer with the summary alone."
)
_MOST_CHARACTERS = 24_000


def summariser_by_name(name: str) -> Callable[[Conversation], str]:
    """Return a summariser by name: "openai:MODEL", asked at OPENAI_BASE_URL with OPENAI_API_KEY.

    Raises:
        InputError: for any other name.
    """
    kind, _, model = name.partition(":")
    if kind != "openai" or not model:
        raise InputError(f"summariser {name!r} is unknown; use openai:MODEL, or hand in a callable")

    def summarise(conversation: Conversation) -> str:
        told = "\n".join(f"{turn.name or turn.role}: {turn.text}" for turn in conversation.turns)
        if len(told) > _MOST_CHARACTERS:
            half = _MOST_CHARACTERS // 2
            told = f"{told[:half]}\n[…]\n{told[-half:]}"
        messages = [{"role": "system", "content": _ASK}, {"role": "user", "content": told}]
        answer = post("/chat/completions", {"model": model, "messages": messages, "temperature": 0})
        try:
            said = answer["choices"][0]["message"]["content"]
            if not isinstance(said, str):
                raise TypeError(f"its content is no text but {type(said).__name__}")
        except (TypeError, KeyError, IndexError) as error:
            raise EmbedderUnavailableError(
                f"{name}: the server's answer has no message ({type(error).__name__}: {error})"
            ) from None
        return said.strip()

    return summarise
