"""The JSON that goes in and out under /v1/memory, for its description (OpenAPI) and for checking what comes in.

The shapes are the command line's (docs/cli.md); what goes out is written by `output`, and not checked once more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from latent_memory.records import ROLES

MOST_HITS = 1_000
MOST_BUDGET = 1_000_000
MOST_PAGE = 1_000

Time = Annotated[
    str | int | float | None,
    Field(description="ISO 8601, or seconds since 1970.", examples=["2025-03-28T11:00:00+01:00"]),
]
Role = Literal[ROLES]  # type: ignore[valid-type]  # their only list
Scope = Annotated[
    str | None,
    Field(description="Whose memory; default: the header Memory-Scope, else the key's only scope."),
]


class _In(BaseModel):
    """What comes in: nothing is converted, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(extra="allow")


def _example(**fields: Any) -> dict[str, Any]:
    return {"examples": [fields]}


# -- conversations ------------------------------------------------------------------------------------------

_MESSAGES = [
    {"role": "user", "content": "When do we fly to Lisbon?", "timestamp": "2025-03-28T11:00:00+00:00", "name": "Ana"},
    {"role": "assistant", "content": "On 8 May, at 7 in the morning.", "timestamp": "2025-03-28T11:00:04+00:00"},
]
_TRIP: dict[str, Any] = {
    "conversation_id": "trip",
    "title": "A flight to Lisbon",
    "timestamp": "2025-03-28T11:00:00+00:00",
    "type": "conversation",
    "summary": "They fly to Lisbon on 8 May.",
    "metadata": {"app": "travel"},
}


class Message(BaseModel):
    """One message. What else stands in it, as in OpenAI's and Anthropic's, is left out."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_example(**_MESSAGES[0]))

    role: Role
    content: str | list[Any] | None = Field(None, description="A text, or a list of parts of which the texts are kept.")
    timestamp: Time = None
    name: str | None = Field(None, description="Who spoke.")
    tool_calls: Any = Field(None, description="Kept of a message that says nothing else.")


class ConversationIn(BaseModel):
    """A conversation to add. Only `messages` are needed; an empty list will do beside a `summary`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_example(**_TRIP, messages=_MESSAGES))

    messages: list[Message]
    conversation_id: str | int | None = Field(None, description="By default one that is made of what was said.")
    title: str | None = None
    timestamp: Time = None
    type: str | None = None
    summary: str | None = None
    metadata: dict[str, Any] | None = Field(None, description="Anything else that is to be kept.")
    generated: list[Any] | None = Field(None, description="Which fields were generated, as an export tells it.")


class OneConversation(ConversationIn):
    """A conversation to add, and where to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_example(**_TRIP, messages=_MESSAGES, scope="ana"))

    scope: Scope = None


class Conversations(BaseModel):
    """Several conversations to add."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=_example(conversations=[{**_TRIP, "messages": _MESSAGES}], scope="ana"),
    )

    conversations: list[ConversationIn]
    scope: Scope = None


class AddReport(_Out):
    """What was added; it is on disk."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            added=1, changed=0, unchanged=0, turns_added=2, turns_changed=0, turns_unchanged=0,
            conversation_ids=["trip"], skipped={},
        ),
    )  # fmt: skip

    added: int = Field(description="Conversations that were not there.")
    changed: int = Field(description="Conversations that were there, and have something new.")
    unchanged: int = Field(description="Conversations that were there as they are.")
    turns_added: int
    turns_changed: int
    turns_unchanged: int
    conversation_ids: list[str] = Field(description="Of all that were sent, in their order.")
    skipped: dict[str, int] = Field(description="What was left out, and how often: empty messages, images, thoughts.")


class Progress(_Out):
    """A line of the answer to a stream of conversations: how far it is on disk, a line left out, or the end.

    Each line counts from the beginning. `line` is the last line of the request up to which everything is on disk. A
    line with `error` tells of one that cannot be used. `done` is true in the last line of a stream that was read to its
    end, and false in the last line of one that was not: what stands behind `line` was not added then.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            line=1000, added=1000, changed=0, unchanged=0, turns_added=8213, turns_changed=0, turns_unchanged=0,
            bad=0, skipped={}, done=True,
        ),
    )  # fmt: skip

    line: int = Field(description="Up to this line of the request everything is on disk; of an error, the bad line.")
    error: str | None = Field(None, description="What is wrong with the line.")
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    turns_added: int = 0
    turns_changed: int = 0
    turns_unchanged: int = 0
    bad: int = Field(0, description="Lines that cannot be used and were left out (skip_bad).")
    skipped: dict[str, int] = Field(default_factory=dict)
    done: bool | None = None


class MessageOut(_Out):
    """One message, word for word."""

    turn: int = Field(description="Its place, from 0.")
    role: Role
    content: str
    timestamp: str | None
    name: str | None


class ConversationOut(_Out):
    """A whole conversation, word for word."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            **_TRIP, generated=[], messages=[{"turn": i, "name": None} | m for i, m in enumerate(_MESSAGES)]
        ),
    )

    conversation_id: str
    title: str
    timestamp: str
    type: str
    summary: str
    metadata: dict[str, Any]
    generated: list[str] = Field(description="The fields that nobody gave and that were made.")
    messages: list[MessageOut]


class ConversationInfo(_Out):
    """A conversation without its messages."""

    conversation_id: str
    title: str
    timestamp: str
    type: str
    summary: str
    turns: int


class ConversationPage(_Out):
    """Conversations, newest first."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            conversations=[{k: v for k, v in _TRIP.items() if k != "metadata"} | {"turns": 2}], next=None
        ),
    )

    conversations: list[ConversationInfo]
    next: str | None = Field(description="`cursor` of the next page; null at the end.")


# -- recall ---------------------------------------------------------------------------------------------------


_FILTERS = ("since", "until", "during", "roles", "conversation_ids", "now")


class _Asked(_In):
    query: str | list[dict[str, Any]] = Field(
        description="A text, or the live messages, of which the last one the user said is asked."
    )
    scope: Scope = None
    since: Time = Field(None, description="Only what was said then or later.")
    until: Time = Field(None, description="Only what was said before then.")
    during: str | None = Field(None, description='Only what was said in this time, in words: "last March", "May 2023".')
    roles: Role | list[Role] | None = Field(None, description="Only turns of these roles.")
    conversation_ids: str | list[str] | None = Field(None, description="Only turns of these conversations.")
    now: Time = Field(None, description='What "last March" is counted from. Default: now.')

    def filters(self) -> dict[str, Any]:
        """Return the filters as `LatentMemory.recall` takes them."""
        return {name: getattr(self, name) for name in _FILTERS}


class RecallRequest(_Asked):
    """A question."""

    model_config = ConfigDict(json_schema_extra=_example(query="When do we fly?", k=5, scope="ana"))

    k: int = Field(10, ge=1, le=MOST_HITS, description="How many turns at most.")
    explain: bool = Field(False, description="Tell what each signal is, and its weight.")


class ContextRequest(_Asked):
    """A question, and how much a prompt has room for."""

    model_config = ConfigDict(json_schema_extra=_example(query="When do we fly?", budget=512, scope="ana"))

    budget: int = Field(1024, ge=1, le=MOST_BUDGET, description="The most tokens that the block may have.")


_PASSAGE: dict[str, Any] = {
    "scope": "ana", "conversation_id": "trip", "turn": 1, "role": "assistant", "name": None,
    "text": "On 8 May, at 7 in the morning.", "timestamp": "2025-03-28T11:00:04+00:00", "title": "A flight to Lisbon",
    "start": 0, "end": 30,
}  # fmt: skip


class Passage(_Out):
    """A turn, a piece of a long one, or the summary of a conversation without turns."""

    scope: str
    conversation_id: str
    turn: int | None = Field(description="From 0; null for a summary.")
    role: str
    name: str | None
    text: str
    timestamp: str
    title: str
    start: int = Field(description="Where the passage begins in its turn, in characters.")
    end: int


class Hit(Passage):
    """A passage, with its score and the signals that made it."""

    score: float
    signals: dict[str, float]


class Signal(_Out):
    """What a signal tells of a turn, and its weight in this memory."""

    told: str
    weight: float | None


class Recalled(_Out):
    """Hits, best first, each of another turn."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(hits=[{"score": 2.31, "signals": {"meaning": 1.0, "words": 0.7}, **_PASSAGE}]),
    )

    hits: list[Hit]
    signals: dict[str, Signal] | None = Field(None, description="With `explain`.")


class Context(_Out):
    """A block of text for a prompt; its text is empty if nothing was found, or nothing fits."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra=_example(text="…", tokens=74, budget=512, passages=[_PASSAGE])
    )

    text: str
    tokens: int
    budget: int
    passages: list[Passage]


# -- the rest -------------------------------------------------------------------------------------------------


class ForgetRequest(_In):
    """What is to be removed for good: conversations, or everything in the scope."""

    model_config = ConfigDict(json_schema_extra=_example(conversation_ids=["trip"], scope="ana"))

    conversation_ids: list[str] | None = Field(None, min_length=1, max_length=10_000)
    everything: bool = Field(False, description="Remove the whole scope; then no ids are given.")
    scope: Scope = None


class Forgotten(_Out):
    """What is gone."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_example(forgotten=1, not_found=[]))

    forgotten: int = Field(description="How many conversations were there and are gone.")
    not_found: list[str]
    retrain: list[str] | None = Field(
        None, description="Adapters that have seen what is forgotten: they must be trained anew, or deleted."
    )


class Stats(_Out):
    """How much a scope holds."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            scope="ana", conversations=1, turns=2, passages=2, first=_TRIP["timestamp"], last=_TRIP["timestamp"],
            embedder="minilm", dimension=384,
        ),
    )  # fmt: skip

    scope: str
    conversations: int
    turns: int
    passages: int
    first: str | None
    last: str | None
    embedder: str
    dimension: int


class Finding(_Out):
    """Something that is not as it should be."""

    kind: str
    where: str
    detail: str
    advice: str


class CheckReport(_Out):
    """What a check of a scope has found."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            sound=True, scope="ana", conversations=1, turns=2, passages=2, problems=[], more={}, notes=[]
        ),
    )

    sound: bool
    scope: str | None
    conversations: int
    turns: int
    passages: int
    problems: list[Finding]
    more: dict[str, int] = Field(description="How many more problems there are of a kind than are told.")
    notes: list[Finding]


class Problem(_Out):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=_example(
            type="about:blank", title="Cannot be used", status=422, detail="query: empty; ask for something",
            code="input", request_id="0f8fad5bd9cb469fa1657086",
        ),
    )  # fmt: skip

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    code: str | None = Field(None, description="A word that a program can tell it by.")
    request_id: str | None = None


_ALL: tuple[type[BaseModel], ...] = (
    *(ConversationIn, OneConversation, Conversations, AddReport, Progress, ConversationOut, ConversationPage),
    *(RecallRequest, ContextRequest, Recalled, Context, ForgetRequest, Forgotten, Stats, CheckReport, Problem),
)


def components() -> dict[str, Any]:
    """Return all schemas by name, as OpenAPI's components have them."""
    _, told = models_json_schema([(each, "validation") for each in _ALL], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = told["$defs"]
    return schemas


def ref(model: type[BaseModel]) -> dict[str, Any]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def example(model: type[BaseModel]) -> Any:
    """Return the example of a schema."""
    extra = model.model_config.get("json_schema_extra")
    assert isinstance(extra, dict)
    examples = extra["examples"]
    assert isinstance(examples, list)
    return examples[0]
