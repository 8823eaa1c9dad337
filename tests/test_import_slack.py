"""Slack exports.

The form is that of Slack's documentation of the `message` event and of its help page on exports, as
hfaran/slack-export-viewer reads them; people, bots and talk are made up. Rich texts are those of
https://docs.slack.dev/reference/block-kit/blocks/rich-text-block, attachments those of
https://api.slack.com/reference/messaging/attachments; what was forwarded has the form that langchain-ai/open-swe reads
(agent/utils/slack.py: is_share, author_name, text).
"""

from __future__ import annotations

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError

USERS = [
    {"id": "U1", "name": "ana.s", "real_name": "Ana Silva", "profile": {"display_name": "Ana", "real_name": "Ana S"}},
    {"id": "U2", "name": "ben", "profile": {"display_name": "", "real_name": "Ben Okoro"}},
    {"id": "U3", "name": "deploybot", "is_bot": True, "profile": {}},
]
FIRST = datetime(2023, 5, 1, 9, tzinfo=UTC).timestamp()


def ts(minutes: int) -> str:
    return f"{FIRST + 60 * minutes:.0f}.000200"


def at(minutes: int) -> datetime:
    return datetime.fromtimestamp(FIRST + 60 * minutes, UTC).replace(microsecond=200)


def message(minutes: int, user: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "user": user, "text": text, "ts": ts(minutes), **more}


NEXT_DAY = 24 * 60
FILES: dict[str, Any] = {
    "users.json": USERS,
    "channels.json": [{"id": "C1", "name": "general", "members": ["U1", "U2"]}],
    "dms.json": [{"id": "D1", "members": ["U1", "U2"]}],
    "integration_logs.json": [],
    "general/2023-05-01.json": [
        message(0, "U2", "<@U2> has joined the channel", subtype="channel_join"),
        message(1, "U1", "Where is the <https://example.org/plan|plan>, <@U2>?", thread_ts=ts(1), reply_count=2),
        message(2, "U2", "See <#C1|general> &amp; <mailto:a@example.org|a@example.org>", edited={"user": "U2"}),
        message(3, "U2", "In the drawer.", thread_ts=ts(1), parent_user_id="U1"),
        {
            "type": "message",
            "subtype": "bot_message",
            "bot_id": "B1",
            "username": "CI",
            "text": "",
            "ts": ts(4),
            "attachments": [{"fallback": "Build 7 failed", "title": "Build 7", "text": "failed"}],
        },
    ],
    "general/2023-05-02.json": [
        message(NEXT_DAY, "U1", "Found it!", thread_ts=ts(1), subtype="thread_broadcast"),
        message(NEXT_DAY + 1, "U1", "", files=[{"name": "plan.pdf"}, {"id": "F2", "mode": "tombstone"}]),
        message(NEXT_DAY + 2, "U3", "Deployed <!here>"),
        message(NEXT_DAY + 3, "U9", "Hi all", user_profile={"real_name": "Eve of Acme"}),
    ],
    "D1/2023-05-01.json": [message(5, "U1", "Lunch?")],
}


def export(path: Path, files: dict[str, Any], prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, value in files.items():
            zipped.writestr(prefix + name, value if isinstance(value, str) else json.dumps(value))
    return path


def read(path: Path, **options: Any) -> list[Conversation]:
    return list(importers.read(path, source="slack", **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Acme Slack export.zip"


def test_days_and_threads_are_conversations(path: Path) -> None:
    skipped: list[str] = []
    found = read(export(path, FILES), on_skip=skipped.append)
    assert importers.recognise(path) == "slack"
    direct, monday, tuesday, thread = found
    asked = Turn("user", "Where is the plan (https://example.org/plan), @Ben Okoro?", at(1), "Ana")
    assert direct == Conversation(
        "D1/2023-05-01",
        [Turn("user", "Lunch?", at(5), "Ana")],
        timestamp=at(5),
        metadata={"channel": "Ana, Ben Okoro"},
    )
    assert monday == Conversation(
        "C1/2023-05-01",
        [
            asked,
            Turn("user", "See #general & a@example.org", at(2), "Ben Okoro"),
            Turn("assistant", "Build 7\nfailed", at(4), "CI"),
        ],
        timestamp=at(1),
        metadata={"channel": "general"},
    )
    assert tuesday == Conversation(
        "C1/2023-05-02",
        [
            Turn("user", "[shared a file: plan.pdf]", at(NEXT_DAY + 1), "Ana"),
            Turn("assistant", "Deployed @here", at(NEXT_DAY + 2), "deploybot"),
            Turn("user", "Hi all", at(NEXT_DAY + 3), "Eve of Acme"),
        ],
        timestamp=at(NEXT_DAY + 1),
        metadata={"channel": "general"},
    )
    assert thread == Conversation(
        f"C1/{ts(1)}",
        [
            asked,
            Turn("user", "In the drawer.", at(3), "Ben Okoro"),
            Turn("user", "Found it!", at(NEXT_DAY), "Ana"),
        ],
        timestamp=at(1),
        metadata={"channel": "general", "thread": ts(1)},
    )
    assert skipped == ["a notice of Slack's"]


def test_an_unpacked_export_and_one_in_a_folder_read_the_same(path: Path, tmp_path: Path) -> None:
    expected = read(export(path, FILES))
    assert read(export(tmp_path / "nested.zip", FILES, prefix="Acme/")) == expected
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as zipped:
        zipped.extractall(folder)
    assert importers.recognise(folder) == "slack"
    assert read(folder) == expected


def test_adding_twice_changes_nothing_and_a_later_export_adds(path: Path, memory: LatentMemory) -> None:
    assert memory.add(read(export(path, FILES))).added == 4
    assert memory.add(read(path)).unchanged == 4
    later = dict(FILES)
    # Somebody answers a message of the first day, which thereby begins a thread.
    monday = [
        entry | ({"thread_ts": ts(2)} if entry["ts"] == ts(2) else {}) for entry in FILES["general/2023-05-01.json"]
    ]
    later["general/2023-05-01.json"] = monday
    later["general/2023-05-03.json"] = [message(2 * NEXT_DAY, "U1", "Thanks", thread_ts=ts(2))]
    report = memory.add(read(export(path, later)))
    assert (report.added, report.changed, report.unchanged) == (1, 0, 4)
    assert report.turns_added == 2


def test_a_renamed_channel_stays_itself(path: Path, memory: LatentMemory) -> None:
    memory.add(read(export(path, FILES)))
    renamed = {name.replace("general/", "all/"): value for name, value in FILES.items()}
    renamed["channels.json"] = [{"id": "C1", "name": "all"}]
    report = memory.add(read(export(path, renamed)))
    assert (report.added, report.changed, report.turns_added, report.turns_changed) == (0, 3, 0, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("&lt;b&gt; &amp;amp;", "<b> &amp;"),
        ("<http://example.org>", "http://example.org"),
        ("<http://example.org|example.org>", "http://example.org"),
        ("<@U1> <@U1|old> <@U7|guest> <@U8>", "@Ana @Ana @guest @U8"),
        ("<#C1> <#C9|secret> <#C8>", "#general #secret #C8"),
        (
            "<!channel> <!subteam^S1|@team> <!date^1392734382^{date}|18 February 2014>",
            "@channel @team 18 February 2014",
        ),
        ("a < b > c", "a < b > c"),
        ("<>", "<>"),
    ],
)
def test_markup_is_told_as_people_read_it(path: Path, text: str, told: str) -> None:
    (found,) = read(export(path, {"users.json": USERS, "channels.json": FILES["channels.json"]} | day(text=text)))
    assert found.turns[0].text == told


def day(**change: Any) -> dict[str, Any]:
    return {"general/2023-05-01.json": [message(0, "U1", "x") | change]}


def test_bots_say_what_they_attach(path: Path) -> None:
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": "All <https://example.org|green>"}}, {"type": "x"}]
    (found,) = read(export(path, day(text=None, blocks=blocks)))
    assert found.turns[0].text == "All green (https://example.org)"


def rich(*elements: Any) -> list[dict[str, Any]]:
    return [{"type": "rich_text", "block_id": "b", "elements": list(elements)}]


def section(*elements: Any) -> dict[str, Any]:
    return {"type": "rich_text_section", "elements": list(elements)}


def words(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


NAMES = {"users.json": USERS, "channels.json": FILES["channels.json"]}


def test_rich_text_alone_is_read(path: Path) -> None:
    blocks = rich(
        section(
            *(words("Look, "), {"type": "user", "user_id": "U2"}, words(": "), words("now", style={"bold": True})),
            *(words(" in "), {"type": "channel", "channel_id": "C1"}, words(" "), {"type": "emoji", "name": "tada"}),
            *(words(" "), {"type": "broadcast", "range": "here"}, {"type": "usergroup", "usergroup_id": "S1"}),
            *(words(" <b> & "), {"type": "link", "url": "https://example.org/plan", "text": "the plan"}, words("\n")),
        ),
        {"type": "rich_text_list", "style": "bullet", "elements": [section(words("green")), section(words("blue"))]},
        {"type": "rich_text_list", "style": "ordered", "indent": 1, "offset": 1, "elements": [section(words("paint"))]},
        {"type": "rich_text_quote", "elements": [words("one\ntwo")]},
        {
            "type": "rich_text_preformatted",
            "elements": [words("x = 1\n"), {"type": "link", "url": "http://example.org"}],
        },
        {"type": "rich_text_list", "style": "bullet", "elements": "x"},
    )
    (found,) = read(export(path, NAMES | day(text="", blocks=blocks)))
    assert found.turns[0].text == (
        "Look, @Ben Okoro: now in #general :tada: @here@S1 <b> & the plan (https://example.org/plan)\n"
        "• green\n• blue\n    2. paint\n> one\n> two\n```x = 1\nhttp://example.org```"
    )


def test_rich_text_that_nests_without_end_is_read(path: Path) -> None:
    element = words("deep")
    for _ in range(200):
        element = section(element)
    skipped: list[str] = []
    assert read(export(path, day(text="", blocks=rich(element, section(words("x"))))))[0].turns[0].text == "x"
    assert read(export(path, day(text="", blocks=rich(element))), on_skip=skipped.append) == []
    assert skipped == ["an empty message"]


def test_the_fields_of_a_section_are_read(path: Path) -> None:
    fields = [{"type": "mrkdwn", "text": "*Who*\n<@U1>"}, {"type": "plain_text", "text": "7 &amp; 8"}, {"type": "x"}]
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": "Build"}},
        {"type": "section", "fields": fields},
        {"type": "context", "elements": [{"type": "mrkdwn", "text": "by CI"}, {"type": "image", "image_url": "x"}]},
        {"type": "actions", "elements": [{"type": "button", "text": {"type": "plain_text", "text": "Retry"}}]},
    ]
    (found,) = read(export(path, NAMES | day(text="", blocks=blocks)))
    assert found.turns[0].text == "Build\n*Who*\n@Ana\n7 & 8\nby CI"


def test_what_was_forwarded_is_told_with_who_said_it(path: Path) -> None:
    shared = {
        "is_share": True,
        "is_msg_unfurl": True,
        "author_name": "Ben",
        "text": "See <#C1>",
        "fallback": "[..] See",
    }
    unnamed = {"is_share": True, "text": "", "fallback": "No name"}
    inner = {"message": {"blocks": rich(section(words("In blocks")))}}
    blocks = {"is_share": True, "author_id": "U2", "message_blocks": [inner], "files": [{"name": "a.pdf"}]}
    attachments = [shared, unnamed, blocks, {"is_share": True}]
    (found,) = read(export(path, NAMES | day(text="Look:", attachments=attachments)))
    assert found.turns[0].text == (
        "Look:\n[forwarded from Ben: See #general]\n[forwarded: No name]\n"
        "[forwarded from Ben Okoro: In blocks\n[shared a file: a.pdf]]"
    )


def test_what_a_bot_attaches_beside_its_text_is_kept_once(path: Path) -> None:
    attachments = [
        {
            "fallback": "Build 7 failed",
            "pretext": "Build 7",
            "title": "Build 7",
            "text": "2 tests <http://x.example|fail>",
        },
        {"fallback": "Build 7"},
        {"fallback": "Log: see &gt;"},
        {"title": "Host", "fields": [{"title": "host", "value": "web-1"}], "blocks": rich(section(words("Up")))},
        "x",
    ]
    bot = {"subtype": "bot_message", "bot_id": "B1", "username": "CI"}
    (found,) = read(export(path, day(text="Build 7", attachments=attachments, **bot)))
    assert found.turns[0].text == "Build 7\n2 tests fail (http://x.example)\nLog: see >\nHost\nhost: web-1\nUp"


def test_a_preview_of_a_link_is_not_what_a_person_said(path: Path) -> None:
    skipped: list[str] = []
    preview = {"from_url": "http://x.example", "title": "Example", "text": "An example.", "fallback": "Example"}
    (found,) = read(export(path, day(text="<http://x.example>", attachments=[preview])), on_skip=skipped.append)
    assert (found.turns[0].text, skipped) == ("http://x.example", ["a preview of a link"])


def test_what_slack_says_itself_is_left_out(path: Path) -> None:
    skipped: list[str] = []
    for subtype in ("channel_topic", "group_leave", "pinned_item", "tombstone", "something_new"):
        assert read(export(path, day(subtype=subtype)), on_skip=skipped.append) == []
    assert skipped[3:] == ["a deleted message", "a notice of Slack's"]
    assert len(read(export(path, day(subtype="me_message")))) == 1


def test_a_thread_without_its_first_message_or_its_answers(path: Path) -> None:
    (found,) = read(export(path, day(thread_ts="1680000000.000100")))
    assert found.conversation_id == "general/1680000000.000100"
    (found,) = read(export(path, day(thread_ts=ts(0), reply_count=0)))
    assert found.conversation_id == "general/2023-05-01"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (day(ts="soon"), 'general/2023-05-01.json, entry 1: "ts": seconds since 1970 were expected'),
        (day(ts="nan"), "is no time"),
        (day(text=5), '"text": a text was expected, not a number'),
        ({"general/2023-05-01.json": ["x"]}, "entry 1: an object was expected, not a text"),
        ({"general/2023-05-01.json": "[{]"}, "general/2023-05-01.json: not JSON"),
        ({"users.json": [{"name": "x"}]} | day(), 'users.json, entry 1: an object with an "id" was expected'),
        ({"users.json": []}, "there is no CHANNEL/DATE.json in it"),
    ],
)
def test_what_is_broken_is_told_and_left_out(path: Path, files: dict[str, Any], told: str) -> None:
    files = files | {"other/2023-05-01.json": [message(9, "U1", "fine")]} if "no CHANNEL" not in told else files
    with pytest.raises(InputError) as caught:
        read(export(path, files))
    assert told in str(caught.value)
    errors: list[InputError] = []
    found = read(path, on_bad=errors.append)
    assert len(errors) == 1
    assert ("other/2023-05-01" in [c.conversation_id for c in found]) == ("no CHANNEL" not in told)


def test_a_file_alone_is_no_export(path: Path) -> None:
    path.write_text(json.dumps(FILES["general/2023-05-01.json"]))
    with pytest.raises(InputError, match="a Slack export is a zip or a directory"):
        read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("user", "text", "subtype", "thread_ts", "bot_id", "files", "file", "attachments", "blocks", "user_profile")
ENTRY = st.fixed_dictionaries({"ts": st.just("1683000000.1") | JSON}, optional=dict.fromkeys(FIELDS, JSON)) | JSON
TABLE = st.lists(st.fixed_dictionaries({"id": JSON}, optional=dict.fromkeys(("name", "profile", "members"), JSON)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(users=TABLE, channels=TABLE, messages=st.lists(ENTRY, max_size=3) | JSON)
def test_any_json_is_read_or_refused(path: Path, users: object, channels: object, messages: object) -> None:
    files = {"users.json": users, "channels.json": channels, "general/2023-05-01.json": json.dumps(messages)}
    read(export(path, files), on_bad=lambda _: None)
