"""Requests and answers of chat APIs: where memory goes in, and what was said.

Three shapes are known: OpenAI's chat completions and responses, and Anthropic's messages. Whatever is not understood
stays as it is: the model's server is the judge of it. Knows nothing of memories, clients and servers.

Memory goes before the last thing the user said, inside that message:

- what stands before it stays the same from one request to the next, so that a provider's prefix cache holds it;
- the application's own system prompt is not touched, and stored words do not get its authority;
- no roles are put in an order that a chat template refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from latent_memory.records import MOST_TURN_CHARACTERS, Turn

Api = Literal["chat", "responses", "anthropic"]

# Where each shape keeps what was said, and what a part that holds text is called in what the user says.
_FIELD = {"chat": "messages", "responses": "input", "anthropic": "messages"}
_PART = {"chat": "text", "responses": "input_text", "anthropic": "text"}
_TEXT_PARTS = ("text", "input_text", "output_text")
_SPEAKERS = ("user", "assistant")


def with_memory(api: Api, body: Mapping[str, Any], block: str) -> dict[str, Any]:
    """Return a request with a block of memory in it; as it is, where the user says nothing.

    Args:
        api: the shape of the request.
        body: the request; it is not changed.
        block: the text of a context.
    """
    enriched = dict(body)
    name = _FIELD[api]
    said = body.get(name)
    if not block:
        return enriched
    if isinstance(said, str):
        if said.strip():
            enriched[name] = f"{block}\n\n{said}"
        return enriched
    at = _last_asked(said)
    if at is None or not isinstance(said, Sequence):
        return enriched
    message = dict(said[at])
    content = message["content"]
    if isinstance(content, str):
        message["content"] = f"{block}\n\n{content}"
    else:
        # Results of tools have to stand first where they are part of what the user says.
        first = next(i for i, part in enumerate(content) if _part_text(part))
        message["content"] = [*content[:first], {"type": _PART[api], "text": f"{block}\n"}, *content[first:]]
    enriched[name] = [*said[:at], message, *said[at + 1 :]]
    return enriched


def asks(api: Api, body: Mapping[str, Any]) -> bool:
    """Tell whether the user says anything in a request, so that there is something to recall for."""
    said = body.get(_FIELD[api])
    return bool(said.strip()) if isinstance(said, str) else _last_asked(said) is not None


def said(api: Api, body: Mapping[str, Any]) -> list[Turn]:
    """Return what the user and the model have said in a request, in order.

    Instructions, and what tools were asked and answered, are not part of it. A text that is too long for a turn makes
    several.
    """
    told = body.get(_FIELD[api])
    if isinstance(told, str):
        return list(turns("user", told))
    found: list[Turn] = []
    for message in told if isinstance(told, Sequence) else ():
        if isinstance(message, Mapping) and message.get("role") in _SPEAKERS:
            name = message.get("name")
            found += turns(message["role"], content_text(message.get("content")), name if _is_name(name) else None)
    return found


def conversation_in(body: Mapping[str, Any]) -> str | None:
    """Return the id of the conversation that a request of the responses API names, None if it names none."""
    named = body.get("conversation")
    named = named.get("id") if isinstance(named, Mapping) else named
    return named if isinstance(named, str) and named.strip() and named.isprintable() else None


def turns(role: str, text: str, name: str | None = None) -> Iterator[Turn]:
    """Yield what was said as turns: none if it is empty, several if it is too long for one."""
    # Half a surrogate pair is what a client cut; it cannot be stored.
    text = text.encode("utf-8", "replace").decode()
    for start in range(0, len(text), MOST_TURN_CHARACTERS):
        piece = text[start : start + MOST_TURN_CHARACTERS]
        if piece.strip():
            yield Turn(role, piece, name=name)


def content_text(content: object) -> str:
    """Return the text of a message's content: itself, or its text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    return "\n".join(text for part in content if (text := _part_text(part)))


def _part_text(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS:
        text = part.get("text")
        if isinstance(text, str) and text.strip():
            return text
    return ""


def _last_asked(messages: object) -> int | None:
    """Return the place of the last message in which the user says something."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return None
    for at in reversed(range(len(messages))):
        message = messages[at]
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str | list) and content_text(content).strip():
                return at
    return None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and len(name) <= 200


# -- answers --------------------------------------------------------------------------------------------------


class Answer(Protocol):
    """What a model answers, put together from a whole body or from the events of a stream."""

    @property
    def text(self) -> str:
        """What it has said so far; the first of several choices."""

    @property
    def characters(self) -> int:
        """How long that is, about; quickly told."""

    @property
    def finished(self) -> bool:
        """Whether it has said that this is all."""

    def whole(self, body: object) -> None:
        """Take a whole answer."""

    def event(self, event: object) -> None:
        """Take one event of a stream."""


class _Texts:
    """Texts that grow piece by piece, each at its place in the answer."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, ...], list[str]] = {}
        self.characters = 0
        self.finished = False

    @property
    def text(self) -> str:
        """What it has said so far; the first of several choices."""
        whole = ("".join(self._pieces[place]) for place in sorted(self._pieces))
        return "\n".join(text for text in whole if text)

    def _add(self, text: str, *place: int) -> None:
        self._pieces.setdefault(place, []).append(text)
        self.characters += len(text)

    def _replace(self, text: str) -> None:
        self._pieces = {(): [text]}
        self.characters = len(text)


class ChatAnswer(_Texts):
    """An answer of chat completions."""

    def whole(self, body: object) -> None:
        """Take a whole answer."""
        self._take(body, "message")

    def event(self, event: object) -> None:
        """Take one event of a stream."""
        self._take(event, "delta")

    def _take(self, body: object, holder: str) -> None:
        choices = body.get("choices") if isinstance(body, Mapping) else None
        for choice in _mappings(choices):
            if choice.get("index", 0) == 0:
                message = choice.get(holder)
                self._add(content_text(message.get("content")) if isinstance(message, Mapping) else "")
                self.finished = self.finished or choice.get("finish_reason") is not None


class ResponsesAnswer(_Texts):
    """An answer of the responses API.

    Attributes:
        response_id: what the next request may name as the previous one; None before it is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.response_id: str | None = None

    def whole(self, body: object) -> None:
        """Take a whole answer."""
        if not isinstance(body, Mapping):
            return
        self._note(body)
        messages = (item for item in _mappings(body.get("output")) if item.get("type") == "message")
        text = "\n".join(text for item in messages if (text := content_text(item.get("content"))))
        # Some servers end a stream with a response that leaves out what was streamed.
        if text:
            self._replace(text)
        self.finished = True

    def event(self, event: object) -> None:
        """Take one event of a stream."""
        if not isinstance(event, Mapping):
            return
        kind, response = event.get("type"), event.get("response")
        if isinstance(response, Mapping):
            self._note(response)
        if kind == "response.output_text.delta" and isinstance(event.get("delta"), str):
            self._add(event["delta"], _number(event.get("output_index")), _number(event.get("content_index")))
        elif kind in ("response.completed", "response.incomplete") and isinstance(response, Mapping):
            self.whole(response)

    def _note(self, response: Mapping[str, Any]) -> None:
        if isinstance(response.get("id"), str):
            self.response_id = response["id"]


class AnthropicAnswer(_Texts):
    """An answer of Anthropic's messages."""

    def whole(self, body: object) -> None:
        """Take a whole answer."""
        if isinstance(body, Mapping):
            self._replace(content_text(body.get("content")))
            self.finished = True

    def event(self, event: object) -> None:
        """Take one event of a stream."""
        if not isinstance(event, Mapping):
            return
        kind, delta = event.get("type"), event.get("delta")
        if kind == "content_block_delta" and isinstance(delta, Mapping) and isinstance(delta.get("text"), str):
            self._add(delta["text"], _number(event.get("index")))
        elif kind == "message_stop":
            self.finished = True


def answer_of(api: Api) -> Answer:
    """Return what takes an answer of a shape."""
    kinds: dict[Api, type[Answer]] = {"chat": ChatAnswer, "responses": ResponsesAnswer, "anthropic": AnthropicAnswer}
    return kinds[api]()


def _mappings(value: object) -> Iterable[Mapping[str, Any]]:
    return (each for each in value if isinstance(each, Mapping)) if isinstance(value, list | tuple) else ()


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
