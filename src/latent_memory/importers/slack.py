"""Slack: a workspace's export, zipped or unpacked.

    users.json  channels.json  groups.json  dms.json  mpims.json        who and what the ids in it stand for
    CHANNEL/2023-05-01.json                                             a day of a channel: a list of messages

A channel never ends, so it is cut: a thread is a conversation, and what else is said in a channel on a day is one. The
message that a thread hangs from stands in both: in its day, whose turns must not move when somebody answers it later,
and first in its thread, which could not be understood without it. The ids are "CHANNEL-ID/2023-05-01" and
"CHANNEL-ID/THREAD-TS", so a later export adds turns and conversations, and a channel that was renamed stays itself.

People have the role "user", bots "assistant", both with their names. Mentions are told by name, links as
"label (address)", a file as "[shared a file: NAME]", and a message that was forwarded as "[forwarded from NAME: TEXT]".
A message without a text is read from its blocks. What a bot attaches beside its text is kept as text too; what a person
attaches beside theirs is Slack's preview of a link, and left out, as is what Slack says itself ("Ana has joined the
channel").

Source: Slack's documentation of the `message` event, its subtypes and "Formatting text for app surfaces", of blocks
(https://docs.slack.dev/reference/block-kit/blocks/rich-text-block) and of attachments
(https://api.slack.com/reference/messaging/attachments), its help page "How to read Slack data exports", and
hfaran/slack-export-viewer (slackviewer/message.py). What was forwarded (`is_share`, `author_name`) is not documented;
it is read as langchain-ai/open-swe does (agent/utils/slack.py).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

from latent_memory.errors import InputError
from latent_memory.importers import archives
from latent_memory.importers.base import Member, Reading, Sample, json_values
from latent_memory.messages import kind
from latent_memory.records import Conversation, Turn

DESCRIPTION = "Slack exports (a zip or a directory with users.json and CHANNEL/DATE.json)"

_DAY = re.compile(r"(?:.*/)?(?P<channel>[^/]+)/(?P<day>\d{4}-\d\d-\d\d)\.json")
# Files that tell what a channel's id stands for.
_CHANNELS = ("channels.json", "groups.json", "dms.json", "mpims.json")
# Subtypes that say something; every other is Slack's own notice.
_SAID = (
    *("bot_message", "me_message", "thread_broadcast", "reply_broadcast", "file_share", "file_comment"),
    *("file_mention", "slackbot_response"),
)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Rich texts nest lists and quotes, but not without end.
_DEEPEST = 20
_LINK = re.compile(r"<([@#!][^<>\n|]+|[A-Za-z][\w+.-]*:[^<>\n|]+)(?:\|([^<>\n]*))?>")


class _Day(NamedTuple):
    """A file of one channel's messages."""

    member: Member
    day: str


class _Names(NamedTuple):
    """What ids stand for: names by user, and by channel; a channel's id and its name by its folder."""

    users: Mapping[str, str]
    bots: frozenset[str]
    channels: Mapping[str, str]
    folders: Mapping[str, tuple[str, str]]


def recognises(sample: Sample) -> bool:
    """Tell whether an archive or a directory holds days of channels, and who is in them."""
    bases = {name.rpartition("/")[2] for name in sample.members}
    known = "users.json" in bases or not bases.isdisjoint(_CHANNELS)
    return known and any(_DAY.fullmatch(name) for name in sample.members)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield each channel's days and threads, each when the last file that belongs to it has been read."""
    if not archives.is_archive(path):
        reading.bad("", "a Slack export is a zip or a directory; a file of its own does not tell who is who")
        return
    with archives.opened(path, reading.name) as archive:
        inside = [Member(name, partial(archive.open, name)) for name in archive.names]
        names = _names(inside, reading)
        days = [(match, member) for member in inside if (match := _DAY.fullmatch(member.name))]
        if not days:
            reading.bad("", "there is no CHANNEL/DATE.json in it, as a Slack export has")
        days.sort(key=lambda found: (found[0]["channel"], found[0]["day"]))
        for folder, group in groupby(days, key=lambda found: str(found[0]["channel"])):
            yield from _channel(folder, [_Day(member, str(match["day"])) for match, member in group], names, reading)


def _channel(folder: str, days: list[_Day], names: _Names, reading: Reading) -> Iterator[Conversation]:
    identifier, channel = names.folders.get(folder, (folder, folder))
    # A thread is done when no later file has more of it; only those that are not wait in memory.
    last = {thread: at for at, day in enumerate(days) for thread in _threads(day)}
    open_threads: dict[str, list[Turn]] = {}
    answered: set[str] = set()

    def made(what: str, turns: list[Turn], **more: Any) -> Iterator[Conversation]:
        if turns:
            where = f"{identifier}/{what}"
            conversation = reading.conversation(where, where, turns, metadata={"channel": channel} | more)
            if conversation is not None:
                yield conversation

    for at, day in enumerate(days):
        turns: list[Turn] = []
        for where, message in _messages(day, reading):
            try:
                turn = _turn(message, where, names, reading)
            except InputError as error:
                reading.bad(where, error)
                continue
            if turn is None:
                continue
            thread = message.get("thread_ts")
            if isinstance(thread, str):
                open_threads.setdefault(thread, []).append(turn)
            if not isinstance(thread, str) or thread == message.get("ts"):
                turns.append(turn)
            else:
                answered.add(thread)
        yield from made(day.day, turns)
        for thread in [thread for thread in open_threads if last.get(thread, 0) <= at]:
            said = open_threads.pop(thread)
            # A message of which all answers were deleted still counts as a thread's beginning.
            if thread in answered:
                yield from made(thread, said, thread=thread)


def _threads(day: _Day) -> Iterator[str]:
    """Yield the threads that a file has messages of; what is wrong with it is told when it is read."""
    ignoring = Reading("", _BEGINNING, on_bad=lambda _: None)
    for _, message in _messages(day, ignoring):
        thread = message.get("thread_ts")
        if isinstance(thread, str):
            yield thread


def _messages(day: _Day, reading: Reading) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, message in json_values(day.member, reading):
        if isinstance(message, dict):
            yield where, message
        else:
            reading.bad(where, f"an object was expected, not {kind(message)}")


# -- who is who ---------------------------------------------------------------------------------------------


def _names(inside: list[Member], reading: Reading) -> _Names:
    users: dict[str, str] = {}
    bots: set[str] = set()
    channels: dict[str, str] = {}
    folders: dict[str, tuple[str, str]] = {}
    members: list[tuple[str, list[Any]]] = []
    for member in inside:
        base = member.name.rpartition("/")[2]
        if base != "users.json" and base not in _CHANNELS:
            continue
        for where, entry in json_values(member, reading):
            identifier = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(identifier, str):
                reading.bad(where, 'an object with an "id" was expected')
            elif base == "users.json":
                users[identifier] = _user_name(entry) or identifier
                if entry.get("is_bot") is True:
                    bots.add(identifier)
            else:
                name = entry.get("name")
                folder = name if isinstance(name, str) and name else identifier
                channels[identifier] = folder
                folders[folder] = (identifier, folder)
                if folder == identifier and isinstance(entry.get("members"), list):
                    members.append((identifier, entry["members"]))
    # A direct message has no name, but people.
    for identifier, people in members:
        told = [users.get(person, person) for person in people if isinstance(person, str)]
        folders[identifier] = (identifier, ", ".join(told) or identifier)
    return _Names(users, frozenset(bots), channels, folders)


def _user_name(user: Mapping[str, Any]) -> str | None:
    profile = user.get("profile")
    places = [profile, user] if isinstance(profile, dict) else [user]
    for key in ("display_name", "real_name", "name"):
        for place in places:
            name = place.get(key)
            if isinstance(name, str) and name.strip():
                return name.strip()
    return None


def _speaker(message: Mapping[str, Any], names: _Names) -> tuple[str, str | None]:
    """Return the role and the name of whoever wrote a message."""
    user = message.get("user")
    bot = message.get("bot_id") is not None or message.get("subtype") in ("bot_message", "slackbot_response")
    known = isinstance(user, str) and (user in names.bots or user == "USLACKBOT")
    role = "assistant" if bot or known else "user"
    name = names.users.get(user) if isinstance(user, str) else None
    # Somebody of another workspace is not among the users, but tells who they are with each message.
    for key in ("user_profile", "bot_profile"):
        profile = message.get(key)
        if name is None and isinstance(profile, dict):
            name = _user_name(profile)
    for key in ("username", "user", "bot_id"):
        if name is None and isinstance(message.get(key), str):
            name = message[key]
    return role, name


# -- what was said ------------------------------------------------------------------------------------------


def _turn(message: Mapping[str, Any], where: str, names: _Names, reading: Reading) -> Turn | None:
    subtype = message.get("subtype")
    if subtype is not None and subtype not in _SAID:
        reading.on_skip("a deleted message" if subtype == "tombstone" else "a notice of Slack's")
        return None
    when = message.get("ts")
    try:
        seconds = float(when) if isinstance(when, str) else None
    except ValueError:
        seconds = None
    if seconds is None:
        raise InputError(f'"ts": seconds since 1970 were expected, not {str(when)[:40]!r}')
    role, name = _speaker(message, names)
    parts = [*_said(message, role, names, reading), *(f"[shared a file: {name}]" for name in _files(message))]
    return reading.turn(where, role, "\n".join(part for part in parts if part.strip()), seconds, name)


def _said(message: Mapping[str, Any], role: str, names: _Names, reading: Reading) -> Iterator[str]:
    """Yield what a message says: its text, else its blocks; what a bot attaches, and what was forwarded."""
    text = message.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f'"text": a text was expected, not {kind(text)}')
    said = _told(text, names) if text and text.strip() else "\n".join(_blocks(message.get("blocks"), names))
    yield said
    attachments = message.get("attachments")
    for attachment in attachments if isinstance(attachments, list) else ():
        if not isinstance(attachment, dict):
            continue
        if attachment.get("is_share") is True:
            yield _forwarded(attachment, names)
        elif role == "assistant" or not said.strip():
            # Bots often say the most, or everything, in what they attach.
            yield "\n".join(_attached(attachment, said, names))
        else:
            reading.on_skip("a preview of a link")


def _told(text: str, names: _Names) -> str:
    """Return a text as people read it: its links and mentions by name, and without escapes."""
    return html.unescape(_LINK.sub(lambda link: _link(link[1], link[2], names), text))


def _attached(attachment: Mapping[str, Any], said: str, names: _Names) -> Iterator[str]:
    """Yield what an attachment says and `said` does not say already."""
    told = [_told(text, names) for key in ("pretext", "title", "text") if isinstance(text := attachment.get(key), str)]
    for field in _objects(attachment.get("fields")):
        pair = [field[key] for key in ("title", "value") if isinstance(field.get(key), str) and field[key].strip()]
        told.append(_told(": ".join(pair), names))
    told += _blocks(attachment.get("blocks"), names)
    found = [text for text in told if text.strip()]
    fallback = attachment.get("fallback")
    if not found and isinstance(fallback, str):
        found = [_told(fallback, names)]
    before = said
    for text in found:
        if f"\n{text.strip()}\n" not in f"\n{before}\n":
            before = f"{before}\n{text.strip()}"
            yield text


def _forwarded(attachment: Mapping[str, Any], names: _Names) -> str:
    """Return what somebody else had said, and who."""
    text = attachment.get("text")
    said = _told(text, names) if isinstance(text, str) and text.strip() else ""
    for block in _objects(attachment.get("message_blocks")) if not said else ():
        inner = block.get("message")
        said += "\n".join(_blocks(inner.get("blocks"), names)) if isinstance(inner, dict) else ""
    parts = [said.strip() or "\n".join(_attached(attachment, "", names)).strip()]
    parts += [f"[shared a file: {name}]" for name in _files(attachment)]
    author = attachment.get("author_name")
    if not isinstance(author, str) or not author.strip():
        author = names.users.get(str(attachment.get("author_id")))
    told = "\n".join(part for part in parts if part)
    return f"[forwarded{f' from {author}' if author else ''}: {told}]" if told else ""


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _blocks(blocks: object, names: _Names) -> Iterator[str]:
    """Yield what blocks say, each as one text."""
    for block in _objects(blocks):
        if block.get("type") == "rich_text":
            told = (_rich(element, names).strip("\n") for element in _objects(block.get("elements")))
            yield from (text for text in told if text)
            continue
        # A section has a text, fields, or both; what stands small in a context are its elements.
        places = [block.get("text"), *_objects(block.get("fields"))]
        places += _objects(block.get("elements")) if block.get("type") == "context" else []
        for place in places:
            text = place.get("text") if isinstance(place, dict) else place
            if isinstance(text, str):
                yield _told(text, names)


def _rich(element: Mapping[str, Any], names: _Names, depth: int = 0) -> str:
    """Return what an element of a rich text says, as Slack writes the same into a message's text."""
    inner = [_rich(each, names, depth + 1) for each in _objects(element.get("elements"))] if depth < _DEEPEST else []
    match element.get("type"):
        case "rich_text_list":
            ordered = element.get("style") == "ordered"
            first, indent = _number(element.get("offset")) + 1, "    " * min(_number(element.get("indent")), _DEEPEST)
            marks = (f"{number}. " if ordered else "• " for number in count(first))
            return "\n".join(f"{indent}{mark}{text}" for mark, text in zip(marks, inner, strict=False))
        case "rich_text_quote":
            return "\n".join(f"> {line}" for line in "".join(inner).split("\n"))
        case "rich_text_preformatted":
            return f"```{''.join(inner)}```"
        case "link" if isinstance(element.get("url"), str):
            label = element.get("text")
            return _link(element["url"], label if isinstance(label, str) else None, names) if element["url"] else ""
        case "user" | "channel" | "usergroup" | "broadcast" | "emoji" | "date" as what:
            return _mention(what, element, names)
        case _:
            text = element.get("text")
            return text if isinstance(text, str) else "".join(inner)


def _mention(what: str, element: Mapping[str, Any], names: _Names) -> str:
    """Return what stands for somebody or something in a rich text; "" if it does not say what."""
    key, form = {
        "user": ("user_id", "@{}"),
        "channel": ("channel_id", "#{}"),
        "usergroup": ("usergroup_id", "@{}"),
        "broadcast": ("range", "@{}"),
        "emoji": ("name", ":{}:"),
        "date": ("fallback", "{}"),
    }[what]
    value = element.get(key)
    if not isinstance(value, str) or not value:
        return ""
    known = {"user": names.users, "channel": names.channels}.get(what, {})
    return form.format(known.get(value, value))


def _number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _files(message: Mapping[str, Any]) -> Iterator[str]:
    files = message.get("files")
    for file in files if isinstance(files, list) else [message.get("file")]:
        # A file that was deleted since has no name any more.
        if isinstance(file, dict) and file.get("mode") != "tombstone":
            name = file.get("title") or file.get("name")
            if isinstance(name, str):
                yield name


def _link(target: str, label: str | None, names: _Names) -> str:
    """Return what stands between angle brackets as people read it."""
    if target[0] == "@":
        return "@" + (names.users.get(target[1:]) or label or target[1:])
    if target[0] == "#":
        return "#" + (label or names.channels.get(target[1:], target[1:]))
    if target[0] == "!":
        # <!here>, <!subteam^S1|@team>, <!date^1392734382^{date}|18 February 2014>
        return label or "@" + target[1:].partition("^")[0]
    address = target.removeprefix("mailto:")
    bare = re.sub(r"^https?://", "", address).rstrip("/")
    if not label or label in (target, address) or label.rstrip("/") == bare:
        return address
    return f"{label} ({address})"
