"""Letta (once MemGPT): agent files (`.af`) and lists of messages as its API returns them.

Three shapes, told apart by what is there:

    {"agents": [{"id", "name", "messages": [...], "block_ids": [...]}], "blocks": [{"id", "label", "value"}]}
    {"agent_type", "name", "created_at", "core_memory": [{"label", "value"}], "messages": [...]}      (before mid-2025)
    [{"id", "date", "message_type": "user_message", "content"}, ...]

An agent has one conversation that never ends, so its messages are one conversation here. What the user and the agent
said to each other is kept: of the agent, its `send_message` calls, or what it says without calling a tool. System
prompts, inner thoughts, other tool calls, their answers, logins and heartbeats are left out; a system alert is kept,
for it may hold the summary of what the file no longer has. A block of the core memory becomes a conversation without
turns whose summary is the block, of the type "memory block".

Ids inside an agent file are numbered anew by every export ("agent-0"), so the conversation's id is made of the agent's
name and the time of its first message, or of the agent itself where the file tells it. A list of messages takes its id
from its earliest message; the API returns lists newest first or oldest first, and both read the same.

Source: `letta/schemas/agent_file.py`, `letta/serialize_schemas/pydantic_agent_schema.py`,
`letta/schemas/letta_message.py` and `letta/system.py` in letta-ai/letta, and the files of letta-ai/agent-file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_memory.errors import InputError
from latent_memory.importers.base import Reading, Sample, json_records, members
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn
from latent_memory.times import epoch, parse_time

DESCRIPTION = "Letta agent files (.af) and message lists"

# What is not said to anybody; names of the API, and of MemGPT's before it.
_UNSAID = {
    "system": "a system prompt",
    "tool": "a tool's answer",
    "approval": "an approval",
    "summary": "a summary of the messages",
    "event": "an event",
    "system_message": "a system prompt",
    "reasoning_message": "a thought",
    "hidden_reasoning_message": "a thought",
    "internal_monologue": "a thought",
    "tool_return_message": "a tool's answer",
    "function_return": "a tool's answer",
    "approval_request_message": "an approval",
    "approval_response_message": "an approval",
    "summary_message": "a summary of the messages",
    "event_message": "an event",
}
_SAID = {
    "user": "user",
    "assistant": "assistant",
    "user_message": "user",
    "assistant_message": "assistant",
    "tool_call_message": "assistant",
    "function_call": "assistant",
}


def recognises(sample: Sample) -> bool:
    """Tell whether a file is an agent file or a list of Letta's messages."""
    first = sample.first
    if sample.members or not isinstance(first, dict):
        return False
    what = first.get("message_type")
    return _is_file(first) or (isinstance(what, str) and what in _UNSAID | _SAID)


def _is_file(value: Mapping[str, Any]) -> bool:
    agents = value.get("agents")
    if isinstance(agents, list) and isinstance(value.get("blocks"), list):
        return True
    return isinstance(value.get("core_memory"), list) and isinstance(value.get("messages"), list)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield the conversation of each agent and the blocks of its memory, or the one of a list of messages."""
    for member in members(path, reading, lambda name: name.endswith((".af", ".json")), "agent file"):
        loose: list[tuple[str, Mapping[str, Any]]] = []
        for where, value in json_records(member, reading):
            yield from _value(value, where, loose, reading)
        if loose:
            yield from _loose(loose, reading)


def _value(
    value: object, where: str, loose: list[tuple[str, Mapping[str, Any]]], reading: Reading
) -> Iterator[Conversation]:
    """Yield what an agent file holds; put messages that stand alone with the others."""
    if not isinstance(value, dict):
        reading.bad(where, f"an object was expected, not {kind(value)}")
    elif isinstance(value.get("agents"), list):
        yield from _agents(value, where, reading)
    elif isinstance(value.get("core_memory"), list):
        key = _key(value.get("name"), value.get("created_at"))
        yield from _talk(value, key, where, reading)
        for number, block in enumerate(value["core_memory"]):
            yield from _block(block, key, f"{where}, core_memory[{number}]", reading)
    elif isinstance(value.get("messages"), list):
        loose += _placed(value["messages"], where, reading)
    elif "message_type" in value or "role" in value:
        loose.append((where, value))
    else:
        reading.bad(where, 'no agent and no message; "agents", "core_memory" or "message_type" was expected')


def _agents(file: Mapping[str, Any], where: str, reading: Reading) -> Iterator[Conversation]:
    listed = file.get("blocks")
    blocks = list(enumerate(listed)) if isinstance(listed, list) else []
    owned: set[int] = set()
    for number, agent in enumerate(file["agents"]):
        place = f"{where}, agents[{number}]"
        if not isinstance(agent, dict):
            reading.bad(place, f"an object was expected, not {kind(agent)}")
            continue
        messages = agent.get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        key = _key(agent.get("name"), first.get("created_at") if isinstance(first, dict) else None)
        yield from _talk(agent, key, place, reading)
        ids = agent.get("block_ids")
        for at, block in blocks:
            if isinstance(block, dict) and isinstance(ids, list) and block.get("id") in ids:
                owned.add(at)
                yield from _block(block, key, f"{where}, blocks[{at}]", reading)
    for at, block in blocks:
        if at not in owned:
            yield from _block(block, "letta", f"{where}, blocks[{at}]", reading)


def _key(name: object, when: object) -> str:
    """Return what tells an agent from others, in every export of it."""
    told = [part for part in (name, when) if isinstance(part, str) and part.strip()]
    return "-".join(told) or "letta"


def _talk(agent: Mapping[str, Any], key: str, where: str, reading: Reading) -> Iterator[Conversation]:
    messages = agent.get("messages")
    if not isinstance(messages, list):
        return
    turns = [turn for _, turn in _turns(_placed(messages, f"{where}, messages", reading), reading)]
    name = agent.get("name")
    if turns:
        yield from _made(
            where,
            reading,
            conversation_id=key,
            turns=turns,
            type="agent",
            metadata={"agent": name} if isinstance(name, str) and name else {},
        )


def _loose(messages: list[tuple[str, Mapping[str, Any]]], reading: Reading) -> Iterator[Conversation]:
    """Yield the conversation of a list of messages, oldest first whichever way the list goes."""
    dated = [(turn, message) for message, turn in _turns(messages, reading)]
    if not dated:
        return
    times = [epoch(turn.timestamp) if turn.timestamp else None for turn, _ in dated]
    first, last = times[0], times[-1]
    if first is not None and last is not None and first > last:
        dated.reverse()
    earliest = dated[0][1].get("id")
    yield from _made(
        "",
        reading,
        # Without an id it is made of the content, and a longer list is another conversation.
        conversation_id=f"letta-{earliest}" if isinstance(earliest, str) and earliest else None,
        turns=[turn for turn, _ in dated],
        type="agent",
    )


def _block(block: object, key: str, where: str, reading: Reading) -> Iterator[Conversation]:
    if not isinstance(block, dict):
        reading.bad(where, f"an object was expected, not {kind(block)}")
        return
    label, value = block.get("label"), block.get("value")
    if not isinstance(label, str) or not isinstance(value, str):
        reading.bad(where, 'a memory block needs a "label" and a "value", both texts')
        return
    if not value.strip():
        reading.on_skip("an empty memory block")
        return
    try:
        when = parse_time(block.get("updated_at"), "updated_at")
    except InputError as error:
        reading.bad(where, error)
        return
    yield from _made(
        where,
        reading,
        conversation_id=f"{key}/{label}",
        summary=value.strip(),
        title=label,
        type="memory block",
        timestamp=when or reading.written,
        generated=frozenset() if when else frozenset({"timestamp:file"}),
    )


def _made(where: str, reading: Reading, **fields: Any) -> Iterator[Conversation]:
    """Yield the conversation of these fields, or report why it cannot be made."""
    if fields.get("turns") and fields["turns"][0].timestamp is None:
        fields |= {"timestamp": reading.written, "generated": frozenset({"timestamp:file"})}
    try:
        conversation = Conversation(**fields)
    except InputError as error:
        reading.bad(where, error)
    else:
        yield conversation


def _placed(messages: list[Any], where: str, reading: Reading) -> list[tuple[str, Mapping[str, Any]]]:
    placed: list[tuple[str, Mapping[str, Any]]] = []
    for number, message in enumerate(messages):
        if isinstance(message, dict):
            placed.append((f"{where}[{number}]", message))
        else:
            reading.bad(f"{where}[{number}]", f"an object was expected, not {kind(message)}")
    return placed


def _turns(messages: list[tuple[str, Mapping[str, Any]]], reading: Reading) -> Iterator[tuple[Mapping[str, Any], Turn]]:
    """Yield what was said, with the message it comes from."""
    for where, message in messages:
        try:
            turn = _turn(message, reading)
        except InputError as error:
            reading.bad(where, error)
            continue
        if turn is not None:
            yield message, turn


def _turn(message: Mapping[str, Any], reading: Reading) -> Turn | None:
    """Return what a message says to somebody; None, and a word to `on_skip`, if it says nothing."""
    what = message.get("message_type") or message.get("role")
    if not isinstance(what, str) or what not in _UNSAID | _SAID:
        raise InputError(f"a message of an unknown kind: {str(what)[:40]!r}")
    if what in _UNSAID:
        reading.on_skip(_UNSAID[what])
        return None
    role: str = _SAID[what]
    name = message.get("name")
    if role == "user":
        role, text, name = _from_user(_text(message, reading), name, reading)
    else:
        text = _from_agent(message, reading)
        name = None
    if not text.strip():
        return None
    return Turn(role, text, parse_time(message.get("created_at") or message.get("date")), name)


def _from_user(text: str, name: Any, reading: Reading) -> tuple[str, str, Any]:
    """Unwrap {"type": "user_message", "message": "..."}, in which MemGPT hands the agent what happens."""
    packed = _json(text) if text.lstrip()[:1] == "{" else None
    if isinstance(packed, dict) and isinstance(packed.get("type"), str):
        told = packed.get("message")
        if packed["type"] == "user_message" and isinstance(told, str):
            return "user", told, packed.get("name") or name
        if packed["type"] == "system_alert" and isinstance(told, str):
            return "system", told, None
        if packed["type"] in ("login", "heartbeat"):
            reading.on_skip(f"a {packed['type']}")
            return "user", "", None
    if not text.strip():
        reading.on_skip("an empty message")
    return "user", text, name


def _from_agent(message: Mapping[str, Any], reading: Reading) -> str:
    calls = message.get("tool_calls")
    single = message.get("tool_call") or message.get("function_call")
    calls = calls if isinstance(calls, list) and calls else [single] if single else []
    if not calls:
        text = _text(message, reading)
        if not text.strip():
            reading.on_skip("an empty message")
        return text
    said: list[str] = []
    for call in calls:
        # The API has name and arguments in the call itself, an agent file in its "function".
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or function.get("name") != "send_message":
            reading.on_skip("a tool call")
            continue
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments)
        told = arguments.get("message") if isinstance(arguments, dict) else None
        if not isinstance(told, str):
            raise InputError("send_message: its arguments hold no message")
        said.append(told)
    # What stands beside a tool call was not said to anybody.
    if any(_parts(message)):
        reading.on_skip("a thought")
    return "\n".join(said)


def _text(message: Mapping[str, Any], reading: Reading) -> str:
    for part in message["content"] if isinstance(message.get("content"), list) else ():
        what = part.get("type") if isinstance(part, dict) else None
        if what != "text":
            reading.on_skip("an image" if what == "image" else "a thought" if "reasoning" in str(what) else "a part")
    return "\n".join(_parts(message))


def _parts(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message's content."""
    content = message.get("content")
    if content is None:
        # MemGPT's own name for it, and the field of the older agent files.
        content = next((message[key] for key in ("message", "assistant_message", "text") if message.get(key)), "")
    if isinstance(content, str):
        return [content] if content.strip() else []
    if not isinstance(content, list):
        raise InputError(f"content: a text was expected, not {kind(content)}")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
