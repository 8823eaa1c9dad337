"""Slack: a workspace's export, zipped or unpacked.

    users.json  channels.json  groups.json  dms.json  mpims.json        who and what the ids in it stand for
    CHANNEL/2023-05-01.json                                             a day of a channel: a list of messages

A channel never ends, so it is cut: a thread is a conversation, and what else is said in a channel on a day is one. The
message that a thread hangs from stands in both: in its day, whose turns must not move when somebody answers it later,
and first in its thread, which could not be understood without it. The ids are "CHANNEL-ID/2023-05-01" and
"CHANNEL-ID/THREAD-TS", so a later export adds turns and conversations, and a channel that was renamed stays itself.

People have the role "user", bots "assistant", both with their names. Mentions are told by name, links as
"label (address)", and a file as "[shared a file: NAME]". What Slack says itself ("Ana has joined the channel") is left
out.

Source: Slack's documentation of the `message` event, its subtypes and "Formatting text for app surfaces", its help
page "How to read Slack data exports", and hfaran/slack-export-viewer.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
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
    parts = [_text(message, names), *(f"[shared a file: {name}]" for name in _files(message))]
    role, name = _speaker(message, names)
    return reading.turn(where, role, "\n".join(part for part in parts if part.strip()), seconds, name)


def _text(message: Mapping[str, Any], names: _Names) -> str:
    text = message.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f'"text": a text was expected, not {kind(text)}')
    if not text or not text.strip():
        # Bots often say everything in what they attach.
        text = "\n".join(_attached(message.get("attachments"))) or "\n".join(_blocks(message.get("blocks")))
    return html.unescape(_LINK.sub(lambda link: _link(link[1], link[2], names), text))


def _attached(attachments: object) -> Iterator[str]:
    for attachment in attachments if isinstance(attachments, list) else ():
        if isinstance(attachment, dict):
            told = [attachment.get(key) for key in ("pretext", "title", "text")]
            found = [text for text in told if isinstance(text, str) and text.strip()]
            fallback = attachment.get("fallback")
            yield from found or ([fallback] if isinstance(fallback, str) else [])


def _blocks(blocks: object) -> Iterator[str]:
    for block in blocks if isinstance(blocks, list) else ():
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(text, dict) and isinstance(text.get("text"), str):
            yield text["text"]


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
