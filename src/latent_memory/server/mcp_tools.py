"""What models may do with a memory over MCP: `recall`, `context`, `add`, `forget` and `list`.

Whatever leaves here is read by a model, as text and often as JSON too: stored words are fenced, or at least defused, so
that they cannot pose as instructions. Knows neither the protocol nor how it is carried; `mcp` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from pydantic import BaseModel

from latent_memory.context import day_heading, defused, fenced, heading, one_line, written
from latent_memory.errors import InputError
from latent_memory.output import many
from latent_memory.records import Conversation, Passage, Turn
from latent_memory.server.mcp_shapes import (
    AddArguments,
    Added,
    Block,
    ContextArguments,
    ForgetArguments,
    Forgotten,
    ListArguments,
    Listed,
    Listing,
    Message,
    RecallArguments,
    Recalled,
    RecalledTurn,
)
from latent_memory.times import in_words

# Not above: it brings NumPy and more, and a client waits for its first answer.
if TYPE_CHECKING:
    from latent_memory.memory import LatentMemory
    from latent_memory.records import ConversationInfo, Hit

URI = "memory://conversations/"
URI_TEMPLATE = f"{URI}{{id}}"

# What a line of a listing needs no more of.
_TITLE = 80
_SUMMARY = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says, for reading and as data."""

    text: str
    data: BaseModel


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: what models are told of it, what it takes and returns, and what it does.

    Attributes:
        work: does it, for the memory, a scope, and checked arguments.
        searches: whether it computes, rather than read and write.
        writes: whether it changes the memory.
        destroys: whether something is gone afterwards.
    """

    name: str
    title: str
    description: str
    arguments: type[BaseModel]
    returns: type[BaseModel]
    work: Callable[[LatentMemory, str, Any], Answer]
    searches: bool = False
    writes: bool = False
    destroys: bool = False


# -- what is done ---------------------------------------------------------------------------------------------


def _recall(memory: LatentMemory, scope: str, given: RecallArguments) -> Answer:
    hits = memory.recall(
        given.query,
        given.k,
        scope=scope,
        since=given.since,
        until=given.until,
        during=given.during,
        conversation_ids=given.conversation_ids,
    )
    data = Recalled(turns=list(map(_turn, hits)))
    return Answer(fenced(map(_told, range(1, len(hits) + 1), hits)) if hits else "Nothing was found.", data)


def _turn(hit: Hit) -> RecalledTurn:
    passage = hit.passage
    return RecalledTurn(
        conversation_id=passage.conversation_id,
        uri=uri_of(passage.conversation_id),
        title=defused(passage.title),
        turn=passage.turn,
        role=passage.role,
        name=passage.name and defused(passage.name),
        timestamp=passage.timestamp.isoformat(),
        text=defused(passage.text),
        score=round(hit.score, 4),
    )


def _told(rank: int, hit: Hit) -> str:
    passage = hit.passage
    where = "summary" if passage.turn is None else f"turn {passage.turn}"
    place = f"conversation {_named(passage.conversation_id)}, {where}"
    return f"\n{rank}. {in_words(passage.timestamp)}, {place}, score {hit.score:.2f}\n{written(passage)}"


def _context(memory: LatentMemory, scope: str, given: ContextArguments) -> Answer:
    block = memory.context(
        given.query,
        given.budget,
        scope=scope,
        since=given.since,
        until=given.until,
        during=given.during,
        conversation_ids=given.conversation_ids,
    )
    ids = list(dict.fromkeys(passage.conversation_id for passage in block.passages))
    data = Block(text=block.text, tokens=block.tokens, budget=block.budget, conversation_ids=ids)
    return Answer(block.text or "Nothing in the memory has to do with this, or nothing fits the budget.", data)


def _add(memory: LatentMemory, scope: str, given: AddArguments) -> Answer:
    if given.text is not None:
        turns, kind = [Turn(given.role, given.text)], "note"
    else:
        turns = [_said(message, f"messages[{i}]") for i, message in enumerate(given.messages or ())]
        kind = "chat"
    if given.conversation_id is None:
        from latent_memory.generated import id_of

        # Without times: the same once more is the same conversation.
        conversation = Conversation(turns=turns, title=given.title, type=kind)
        name = id_of(conversation)
        report = memory.add(conversation, scope)
    else:
        name = given.conversation_id
        report = memory.extend(name, _following(turns, given.title, kind), scope)
    count = report.turns_added
    added = f"{many(count, 'turn')} added to" if count else "Nothing to add: all of it is already in"
    return Answer(
        f"{added} conversation {_named(name)}.", Added(conversation_id=name, uri=uri_of(name), turns_added=count)
    )


def _said(message: Message, where: str) -> Turn:
    try:
        # A Turn reads a time from a text.
        return Turn(message.role, message.content, message.timestamp, message.name)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{where}.{str(error).replace('text:', 'content:', 1)}") from None


def _following(
    turns: Sequence[Turn], title: str | None, kind: str
) -> Callable[[Conversation | None], Conversation | None]:
    """Return what makes of a stored conversation one that goes on with turns; nothing that is stored is changed."""
    from latent_memory.recording import unsaid

    now = datetime.now().astimezone()
    # What follows the last question answers it.
    asked = next((i + 1 for i in range(len(turns) - 1, -1, -1) if turns[i].role == "user"), 0)

    def follow(stored: Conversation | None) -> Conversation | None:
        before = stored.turns if stored else ()
        if kind == "note":
            said = {(turn.role, turn.text.strip()) for turn in before}
            new = [turn for turn in turns if (turn.role, turn.text.strip()) not in said]
        else:
            new = unsaid(before, turns[:asked], turns[asked:])
        if not new:
            return None
        stamped = [turn if turn.timestamp else replace(turn, timestamp=now) for turn in new]
        if stored is None:
            return Conversation(turns=stamped, title=title, type=kind)
        return Conversation(turns=[*before, *stamped], title=title if "title" in stored.generated else None)

    return follow


def _forget(memory: LatentMemory, scope: str, given: ForgetArguments) -> Answer:
    ids = list(dict.fromkeys(given.conversation_ids))
    missing = memory.missing(ids, scope=scope)
    gone = memory.forget(ids, scope=scope)
    told = f"{many(gone, 'conversation')} forgotten."
    if missing:
        told += f" Not found: {', '.join(map(_named, missing))}."
    return Answer(told, Forgotten(forgotten=gone, not_found=missing))


def _list(memory: LatentMemory, scope: str, given: ListArguments) -> Answer:
    page = memory.conversations(scope=scope, limit=given.limit + 1, offset=given.offset)
    more, page = len(page) > given.limit, page[: given.limit]
    data = Listing(conversations=list(map(_listed, page)), more=more)
    if not page:
        return Answer("There are no older conversations." if given.offset else "There are no conversations yet.", data)
    text = fenced(map(_line_of, range(given.offset + 1, given.offset + 1 + len(page)), page))
    return Answer(f"{text}\nOlder ones: offset {given.offset + len(page)}." if more else text, data)


def _listed(info: ConversationInfo) -> Listed:
    return Listed(
        conversation_id=info.conversation_id,
        uri=uri_of(info.conversation_id),
        title=defused(info.title),
        timestamp=info.timestamp.isoformat(),
        type=defused(info.type),
        summary=defused(info.summary),
        turns=info.turns,
    )


def _line_of(number: int, info: ConversationInfo) -> str:
    place = f"conversation {_named(info.conversation_id)}, {many(info.turns, 'turn')}"
    first = f"\n{number}. {in_words(info.timestamp)}, {place}\n"
    # What was generated from one sentence is that sentence twice.
    about = dict.fromkeys((one_line(info.title, _TITLE), one_line(info.summary, _SUMMARY)))
    return first + "".join(f"  {line}\n" for line in about)


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "recall",
            "Recall from memory",
            "Find what was said in earlier conversations and saved notes. Use it whenever the user refers to something "
            'from before ("as we said", "my usual one", a name you do not know), and before you say that you do not '
            "know a fact about them or about their project. Returns single turns, word for word, best first, with who "
            "said it and when, and the id of the conversation. Ask again in other words if nothing fits.",
            RecallArguments,
            Recalled,
            _recall,
            searches=True,
        ),
        Tool(
            "context",
            "Get context from memory",
            "Get one block of text with everything in the memory that matters to a request, within a budget of tokens: "
            "turns in the order they were said, grouped by conversation, with dates and names. Use it once at the "
            "beginning of a task or an answer, with the user's request as the query. Use recall instead to look "
            "something up, or where you need ids and scores.",
            ContextArguments,
            Block,
            _context,
            searches=True,
        ),
        Tool(
            "add",
            "Add to memory",
            "Keep something for later conversations: a note (text) as soon as you learn something lasting, such as a "
            "preference, a decision, a fact, how something is done here; or a conversation (messages), word for word. "
            "Not for what is secret, such as passwords and keys. Adding the same again adds nothing, and nothing that "
            "is stored is ever changed: where a conversation goes on, give the same conversation_id and the new "
            "messages, or all of them.",
            AddArguments,
            Added,
            _add,
            writes=True,
        ),
        Tool(
            "forget",
            "Forget conversations",
            "Remove conversations, or notes, from the memory for good. Only if the user asks for it; find the ids with "
            "recall or list first, and tell the user what will be gone. It cannot be taken back.",
            ForgetArguments,
            Forgotten,
            _forget,
            writes=True,
            destroys=True,
        ),
        Tool(
            "list",
            "List conversations",
            "List the conversations and notes in the memory, newest first, with their ids, titles, times and "
            "summaries. Use it to see what there is, to tell the user, or to find ids; use recall to find something "
            "that was said.",
            ListArguments,
            Listing,
            _list,
        ),
    )
}

# -- conversations as resources -------------------------------------------------------------------------------


def uri_of(conversation_id: str) -> str:
    """Return the URI of a conversation."""
    return URI + quote(conversation_id, safe="")


def id_of(uri: str) -> str | None:
    """Return the id of the conversation that a URI is of, None if it is none."""
    if not uri.startswith(URI):
        return None
    try:
        return unquote(uri.removeprefix(URI), errors="strict") or None
    except UnicodeDecodeError:
        return None


def whole(conversation: Conversation, scope: str) -> str:
    """Return a conversation as Markdown, fenced as what is recalled."""
    assert conversation.conversation_id is not None
    assert conversation.timestamp is not None
    began, title = conversation.timestamp, conversation.title or ""
    parts = [heading(title, began)]
    day = in_words(began)
    for number, turn in enumerate(conversation.turns):
        said = turn.timestamp or began
        if in_words(said) != day:
            parts.append(day_heading(said))
            day = in_words(said)
        parts.append(
            written(Passage(scope, conversation.conversation_id, number, turn.role, turn.name, turn.text, said, title))
        )
    if not conversation.turns:
        summary = conversation.summary or ""
        parts.append(written(Passage(scope, conversation.conversation_id, None, "", None, summary, began, title)))
    return fenced(parts)


# -- how it is written ----------------------------------------------------------------------------------------


def _named(conversation_id: str) -> str:
    """Return an id as a JSON text: on one line, and told from what stands around it."""
    return defused(json.dumps(conversation_id, ensure_ascii=False))
