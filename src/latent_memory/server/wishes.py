"""What a chat wants of the memory: told in headers, or in the body's field "memory", which goes before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from latent_memory.errors import InputError
from latent_memory.records import check_text
from latent_memory.server.access import SCOPE_HEADER, Caller, header
from latent_memory.server.problems import ProblemError

FIELD = "memory"
MODES = ("on", "recall", "record", "off")
WAYS = ("prompt", "kv")
# More than any model reads.
MOST_BUDGET = 1_000_000
_HEADERS = {
    "scope": SCOPE_HEADER,
    "conversation": "Memory-Conversation",
    "budget": "Memory-Budget",
    "mode": "Memory-Mode",
    "way": "Memory-Way",
}
NAME_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a chat wants.

    Attributes:
        mode: one of `MODES`, as far as the caller may.
        scope: whose memory; None where none is touched.
        conversation_id: to which the exchange belongs; None if it is to be found by what was said.
        budget: the most tokens of memory.
        way: one of `WAYS`; None for the usual one.
        continues: the upstream keeps what was said before in the conversation, so the request does not say it.
    """

    mode: str
    scope: str | None
    conversation_id: str | None
    budget: int
    way: str | None
    continues: bool = False

    @property
    def recalls(self) -> bool:
        """Whether the memory is asked."""
        return self.mode in ("on", "recall") and self.budget > 0

    @property
    def records(self) -> bool:
        """Whether the exchange is added to it."""
        return self.mode in ("on", "record")


def wishes_of(headers: Headers, body: Mapping[str, Any], caller: Caller, budget: int) -> Wishes:
    """Read what a chat wants.

    Args:
        headers: of the request.
        body: of the request.
        caller: who sent it.
        budget: where it names none.

    Raises:
        ProblemError: for what cannot be, or is not open to the caller.
    """
    told = body.get(FIELD)
    if told is not None and not isinstance(told, Mapping):
        raise ProblemError(400, f'{FIELD}: an object was expected, such as {{"scope": "ana"}}', code="input")
    unknown = sorted(set(told or ()) - set(_HEADERS))
    if unknown:
        names = ", ".join(_HEADERS)
        raise ProblemError(400, f"{FIELD}: knows no {unknown[0][:60]!r}; use {names}", code="input")
    given = {
        name: told[name] if told is not None and told.get(name) is not None else header(headers, sent)
        for name, sent in _HEADERS.items()
    }
    mode = _one_of("mode", given["mode"], MODES) or "on"
    scope = _text("scope", given["scope"])
    # Where no memory is touched, it need not be told whose.
    scope = caller.scope_of(scope) if scope is not None or mode != "off" else None
    if mode == "record":
        caller.check_may_write()
    if mode == "on" and not caller.may_write:
        mode = "recall"
    return Wishes(
        mode=mode,
        scope=scope,
        conversation_id=_text("conversation", given["conversation"]),
        budget=_budget(given["budget"], budget),
        way=_one_of("way", given["way"], WAYS),
    )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    lowered = value.strip().lower() if isinstance(value, str) else None
    if lowered not in known:
        raise ProblemError(400, f"{_where(name)}: {str(value)[:60]!r}; use one of {', '.join(known)}", code="input")
    return lowered


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    try:
        check_text(value, _where(name))
    except InputError as error:
        raise ProblemError(400, str(error), code="input") from None
    text = str(value)
    if not text.strip() or len(text) > NAME_CHARACTERS:
        raise ProblemError(
            400, f"{_where(name)}: 1 to {NAME_CHARACTERS:,} characters were expected, not {len(text):,}", code="input"
        )
    return text


def _budget(value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 12:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_BUDGET:
        raise ProblemError(
            400, f"{_where('budget')}: {str(value)[:60]!r}; a number of tokens from 0 to {MOST_BUDGET:,} was expected",
            code="input",
        )  # fmt: skip
    return value


def _where(name: str) -> str:
    return f"{_HEADERS[name]} or {FIELD}.{name}"
