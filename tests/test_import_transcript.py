"""Transcripts, in the forms that chat interfaces and meeting recorders write; the talk is made up.

Names alone in bold are those of Cursor's "Export Chat", as
https://github.com/specstoryai/getspecstory and others write them too.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError

CODE = "```python\nUser: int = 5\n## Assistant\n```"
TAIL = f"Two grams.\n\nNote: a pinch.\n\n{CODE}"
FORMS = {
    "headings": f"# Salt\n\n## User\n\nHow much salt?\n\n---\n\n## Assistant\n\n{TAIL}\n",
    "headings with times": f"### 🧑 User (2024-05-01 10:00)\nHow much salt?\n### 🤖 ChatGPT:\n{TAIL}",
    "bold": f"**You:** How much salt?\n\n**Claude:** {TAIL}\n",
    "bold, the colon outside": f"**Human**: How much salt?\n\n__AI__:\n{TAIL}\n",
    "plain": f"User: How much salt?\nAssistant: {TAIL}\n",
    "plain, a line for the name": f"ME:\nHow much salt?\n\nBot:\n{TAIL}\n",
    "a line in bold": f"# Salt\n\n---\n\n**User**\n\nHow much salt?\n\n---\n\n**Cursor**\n\n{TAIL}\n\n---\n",
    "a line in bold italics": (
        f"_**User (2025-12-25 10:07Z)**_\n\nHow much salt?\n\n---\n\n_**Agent (model claude-opus-4-5)**_\n\n{TAIL}\n"
    ),
    "questions and answers": f"Q: How much salt?\nA: {TAIL}\n",
    "a date and a dash": f"2024-05-01 10:00 - User: How much salt?\n2024-05-01 10:01 - Assistant: {TAIL}",
    "timed": f"[2024-05-01 10:00:00] User: How much salt?\r\n[2024-05-01 10:00:05] GPT: {TAIL}",
}


def read(path: Path, text: str, **options: Any) -> list[Conversation]:
    path.write_bytes(text.encode())
    return list(importers.read(path, source="transcript", **options))


def spoken(found: list[Conversation]) -> list[tuple[str, str | None, str]]:
    return [(turn.role, turn.name, turn.text) for conversation in found for turn in conversation.turns]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "salt.md"


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_chat_with_an_assistant(path: Path, text: str) -> None:
    found = read(path, text)
    assert importers.recognise(path) == "transcript"
    assert spoken(found) == [
        ("user", None, "How much salt?"),
        ("assistant", None, TAIL),
    ]


def test_title_and_times(path: Path) -> None:
    (found,) = read(path, FORMS["headings"])
    assert (found.title, found.generated) == ("Salt", frozenset({"timestamp:file"}))
    (found,) = read(path, FORMS["timed"])
    assert [turn.timestamp for turn in found.turns] == [datetime(2024, 5, 1, 10), datetime(2024, 5, 1, 10, 0, 5)]
    assert (found.title, found.timestamp, found.generated) == (None, None, frozenset())
    (found,) = read(path, FORMS["headings with times"])
    assert found.turns[0].timestamp == datetime(2024, 5, 1, 10)


@pytest.mark.parametrize(
    ("written", "when"),
    [
        ("2024-05-01, 10:00", datetime(2024, 5, 1, 10)),
        ("2024/05/01 3:05 PM", datetime(2024, 5, 1, 15, 5)),
        ("01.05.2024 10:00", datetime(2024, 5, 1, 10)),
        ("28/03/2025, 10:00:07", datetime(2025, 3, 28, 10, 0, 7)),
        ("2025-12-25T10:07:00Z", datetime(2025, 12, 25, 10, 7, tzinfo=UTC)),
        # Two readers would read two days.
        ("01/05/2024 10:00", None),
        ("2024-99-99 10:00", None),
        ("10:00:07", None),
    ],
)
def test_a_date_with_a_time_dates_a_turn(path: Path, written: str, when: datetime | None) -> None:
    (found,) = read(path, f"[{written}] User: How much?\n[{written}] Bot: Two grams.\n")
    assert found.turns == (Turn("user", "How much?", when), Turn("assistant", "Two grams.", when))


def test_an_agent_among_people_and_a_point_a_are_no_assistants(path: Path) -> None:
    text = "Customer: It broke again today.\nAgent: I send a new one.\n" * 2
    assert [turn[:2] for turn in spoken(read(path, text))] == [("user", "Customer"), ("user", "Agent")] * 2
    text = "A: It broke again today.\nB: I send a new one.\n" * 2
    assert [turn[:2] for turn in spoken(read(path, text))] == [("user", "A"), ("user", "B")] * 2


def test_a_meeting(path: Path) -> None:
    text = (
        "[00:00:03] Ana: Shall we begin?\n[00:00:05] Dr. Ben O'Neill: Yes.\nOne point: the roof.\n"
        "[00:12:03] Ana: It leaks.\n[01:00:00] Cem: Since May.\n"
    )
    found = read(path, text)
    assert importers.recognise(path) == "transcript"
    assert found[0].turns == (
        Turn("user", "Shall we begin?", name="Ana"),
        Turn("user", "Yes.\nOne point: the roof.", name="Dr. Ben O'Neill"),
        Turn("user", "It leaks.", name="Ana"),
        Turn("user", "Since May.", name="Cem"),
    )


def test_people_without_times(path: Path) -> None:
    text = (
        "Ana: The roof leaks again.\nBen: Since the storm?\n\nAna: The big storm, yes.\nBen: I call the roofer now.\n"
    )
    found = read(path, text)
    assert importers.recognise(path) == "transcript"
    assert [name for _, name, _ in spoken(found)] == ["Ana", "Ben", "Ana", "Ben"]


def test_bold_words_in_an_answer_are_text(path: Path) -> None:
    text = "**User:** Compare them.\n\n**Assistant:** Well:\n\n**Speed:** high\n\n**Cost:** low\n\n**User:** Thanks.\n"
    assert [text for _, _, text in spoken(read(path, text))] == [
        "Compare them.",
        "Well:\n\n**Speed:** high\n\n**Cost:** low",
        "Thanks.",
    ]


def test_headings_in_an_answer_are_text(path: Path) -> None:
    text = "User: Write it.\nAssistant: ## Summary\nShort.\n## Details\nLong.\n## Summary\nUser: Good.\n"
    assert [role for role, _, _ in spoken(read(path, text))] == ["user", "assistant", "user"]


def test_what_stands_before_the_first_speaker_is_told(path: Path) -> None:
    skipped: list[str] = []
    found = read(
        path, "Exported on Monday\n\nSystem: Be brief.\nUser: Hi.\nAI:\nUser: Hello?\n", on_skip=skipped.append
    )
    assert spoken(found) == [("system", None, "Be brief."), ("user", None, "Hi."), ("user", None, "Hello?")]
    assert skipped == ["text before the first speaker", "an empty message"]


def test_adding_twice_changes_nothing_and_a_longer_file_adds(path: Path, memory: LatentMemory) -> None:
    assert memory.add(read(path, FORMS["plain"])).turns_added == 2
    assert memory.add(read(path, FORMS["plain"])).unchanged == 1
    report = memory.add(read(path, FORMS["plain"] + "User: Sea salt?\nAssistant: The same.\n"))
    assert (report.added, report.changed, report.turns_added, report.turns_changed) == (0, 1, 2, 0)


def test_files_of_one_name_are_not_one_conversation(tmp_path: Path) -> None:
    ids = set()
    for folder, asked in (("a", "How much salt?"), ("b", "How much pepper?")):
        (tmp_path / folder).mkdir()
        ids |= {c.conversation_id for c in read(tmp_path / folder / "chat.txt", f"User: {asked}\nAI: Two grams.\n")}
    assert len(ids) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Dear diary, today it rained.\nNote: buy an umbrella.\nNote: and boots.\n",
        "# Report\n\n## Results\n\nGood.\n\n## Results\n\nBetter.\n\n## Method\n\nx\n\n## Method\n\ny\n",
        "Name: Ana\nAge: 41\n\nName: Ben\nAge: 39\n\nName: Cem\nAge: 4\n",
        "Colour: red\nSize: XL\n\nColour: blue\nSize: S\n\nColour: green\nSize: M\n",
        "[2024-05-01 10:00:00] INFO: started\n[2024-05-01 10:00:01] ERROR: failed\n[2024-05-01 10:00:02] INFO: x\n",
        "**Pros:** cheap\n**Cons:** slow\n",
        "Breakfast: two eggs with toast\nLunch: a soup with bread\n\n" * 2,
        "Plan: we paint the hall\nDone: we bought the paint\nBlocked: the ladder is lent\n\n" * 3,
        "**Speed**\n\nIt is fast.\n\n**Cost**\n\nIt is cheap.\n\n**Speed**\n\nStill.\n\n**Cost**\n\nStill.\n",
        "Notes of the day.\nWe met at nine.\nWe left at ten.\nIt rained.\nQ: who comes next time\nA: Ana does\n",
        "2024-05-01 10:00 - INFO: started\n2024-05-01 10:01 - ERROR: failed\n",
        "To: ana@example.org\nFrom: ben@example.org\nSubject: lunch\n\nHow about noon?\n",
        "User: only a field\n",
        "https://example.org\nhttps://example.com\n",
        "",
        "\0\0\0",
        json.dumps({"User": "x", "Assistant": "y"}),
    ],
    ids=lambda text: text[:20],
)
def test_other_texts_are_not_taken_for_transcripts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=r"unknown format|nothing to add"):
        importers.recognise(path)


def test_files_of_other_kinds_are_not_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("user: ana is my name\nassistant: claude is it\nuser: two of them\n")
    with pytest.raises(InputError, match="unknown format"):
        importers.recognise(path)


def test_what_is_broken_is_told_and_left_out(path: Path) -> None:
    with pytest.raises(InputError, match="no line tells who speaks"):
        read(path, "Just a text.\n")
    path.write_bytes(b"User: caf\xe9\nUser: coffee\nAI: tea\n")
    errors: list[InputError] = []
    found = list(importers.read(path, source="transcript", on_bad=errors.append))
    assert [text for _, _, text in spoken(found)] == ["coffee", "tea"]
    assert [str(error) for error in errors] == [f"{path}, line 1: not UTF-8 (byte 9)"]
    errors = []
    found = read(path, f"User: {'x ' * 600_000}\nAI: tea\n", on_bad=errors.append)
    assert [text for _, _, text in spoken(found)] == ["tea"]
    assert "line 1: text: 1,199,999 characters" in str(errors[0])


LINE = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "## ", "**", "[00:01] ", "[2024-99-99 10:00] ", "```", "# ", "---"]),
    st.sampled_from(["User", "Assistant", "Ana", "Note", "", "User:**", "Ana (10:00)"]),
    st.sampled_from([":", ":** ", "**:", "", ": "]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_any_text_is_read_or_refused(path: Path, lines: list[str]) -> None:
    read(path, "\n".join(lines), on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    list(importers.read(path, source="transcript", on_bad=lambda _: None))


def test_a_line_that_was_made_to_take_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    path.write_text("User: hi\nAssistant: ho\n[00:12:03]" + " " * 100_000 + "1\n")
    (found,) = importers.read(path)
    assert [turn.role for turn in found.turns] == ["user", "assistant"]
