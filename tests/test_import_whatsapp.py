"""WhatsApp chats.

The forms of dates are those that Pustur/whatsapp-chat-parser reads (its tests/unit/parser.test.ts), the wordings of
WhatsApp's own lines those that public parsers list: mlomb/chat-analytics (pipeline/parse/parsers/WhatsApp.ts),
starkdmi/whats_json (lib/src/patterns.dart, and README.md for the date in Arabic digits), JaydenCJ/chatcarve
(src/chatcarve/media.py, system.py) and matteogilioli/wa-chat-viewer (test/formats.test.mjs); the talk is made up.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_memory import Conversation, LatentMemory, Turn, importers
from latent_memory.errors import InputError

LRM = "\u200e"
RLM = "\u200f"
NARROW = "\u202f"

ANDROID = """\
01/05/2023, 09:12 - Messages and calls are end-to-end encrypted. No one outside of this chat can read them.
01/05/2023, 09:12 - Ana: Shall we repaint the kitchen?
It is still beige.

Yes: beige.
01/05/2023, 09:15 - Ben: <Media omitted>
01/05/2023, 09:16 - Ben: IMG-20230501-WA0003.jpg (file attached)
This green?
01/05/2023, 23:59 - Ben: Or blue <This message was edited>
02/05/2023, 00:01 - Ana: This message was deleted
02/05/2023, 00:02 - Ana changed the subject from "Kitchen" to "Kitchen: green"
02/05/2023, 00:03 - Ana: Green it is.
02/05/2023, 08:00 - Ana added Cem
13/05/2023, 10:00 - +49 170 1234567: I bring the brushes.
"""
IOS = f"""\
[5/1/23, 9:12:01{NARROW}AM] Kitchen: {LRM}Messages and calls are end-to-end encrypted.
[5/1/23, 9:12:44{NARROW}AM] Ana: Shall we repaint the kitchen?
{LRM}[5/1/23, 9:13:00{NARROW}AM] Ben: {LRM}image omitted
{LRM}[5/1/23, 9:13:20{NARROW}AM] Ben: This green? {LRM}<attached: 00000042-PHOTO-2023-05-01-09-13-20.jpg>
[5/1/23, 12:14:00{NARROW}PM] ~\u00a0Cem: Or blue {LRM}<This message was edited>
{LRM}[5/1/23, 12:15:00{NARROW}PM] Ben: {LRM}Ben added Dora
{LRM}[5/1/23, 12:16:00{NARROW}PM] Ben: plan.pdf • {LRM}3 pages {LRM}document omitted
{LRM}[5/1/23, 12:17:00{NARROW}PM] Ben: {LRM}Location: https://maps.example.org/?q=1,2
{LRM}[5/1/23, 12:18:00{NARROW}PM] Ana: {LRM}You deleted this message.
{LRM}[5/1/23, 12:19:00{NARROW}PM] Ana: {LRM}Missed voice call
[5/1/23, 12:20:00{NARROW}AM] Meta AI: Blue calms.
"""


def read(path: Path, content: str | bytes, **options: Any) -> list[Conversation]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(importers.read(path, source="whatsapp", **options))


def texts(found: list[Conversation]) -> list[tuple[str | None, str]]:
    return [(turn.name, turn.text) for conversation in found for turn in conversation.turns]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "WhatsApp Chat with Kitchen.txt"


def test_an_android_chat(path: Path) -> None:
    skipped: list[str] = []
    first, second, third = read(path, ANDROID, on_skip=skipped.append)
    assert importers.recognise(path) == "whatsapp"
    assert first == Conversation(
        "Kitchen/2023-05-01T09:12:00",
        [
            Turn(
                "user",
                "Shall we repaint the kitchen?\nIt is still beige.\n\nYes: beige.",
                datetime(2023, 5, 1, 9, 12),
                "Ana",
            ),
            Turn("user", "This green?", datetime(2023, 5, 1, 9, 16), "Ben"),
            Turn("user", "Or blue", datetime(2023, 5, 1, 23, 59), "Ben"),
        ],
        timestamp=datetime(2023, 5, 1, 9, 12),
        metadata={"chat": "Kitchen"},
    )
    assert second.conversation_id == "Kitchen/2023-05-02T00:01:00"
    assert texts([second]) == [("Ana", "Green it is.")]
    assert texts([third]) == [("+49 170 1234567", "I bring the brushes.")]
    assert skipped == [
        "a notice of WhatsApp's",
        "a photo or a file",
        "a deleted message",
        "a notice of WhatsApp's",
        "a notice of WhatsApp's",
    ]


def test_an_ios_chat(path: Path) -> None:
    skipped: list[str] = []
    (found,) = read(path, IOS, on_skip=skipped.append)
    assert importers.recognise(path) == "whatsapp"
    assert texts([found]) == [
        ("Ana", "Shall we repaint the kitchen?"),
        ("Ben", "This green?"),
        ("Cem", "Or blue"),
        ("Ben", "Location: https://maps.example.org/?q=1,2"),
        ("Meta AI", "Blue calms."),
    ]
    assert [turn.timestamp for turn in found.turns] == [
        datetime(2023, 5, 1, 9, 12, 44),
        datetime(2023, 5, 1, 9, 13, 20),
        datetime(2023, 5, 1, 12, 14),
        datetime(2023, 5, 1, 12, 17),
        datetime(2023, 5, 1, 0, 20),
    ]
    assert [turn.role for turn in found.turns] == ["user", "user", "user", "user", "assistant"]
    assert skipped == [
        "a notice of WhatsApp's",
        "a photo or a file",
        "a notice of WhatsApp's",
        "a photo or a file",
        "a deleted message",
        "a call",
    ]


@pytest.mark.parametrize(
    ("line", "when"),
    [
        ("13/06/2018, 21:25 - a: m", datetime(2018, 6, 13, 21, 25)),
        ("6/13/18, 9:25 PM - a: m", datetime(2018, 6, 13, 21, 25)),
        ("6/3/18, 12:25 AM - a: m", datetime(2018, 6, 3, 0, 25)),
        ("03/06/18, 9:25 pm - a: m", datetime(2018, 6, 3, 21, 25)),
        ("3/6/18, 1:55 p.m. - a: m", datetime(2018, 6, 3, 13, 55)),
        ("[3/6/18 1:55:00 p. m.] a: m", datetime(2018, 6, 3, 13, 55)),
        ("03-06-2018, 13.55 - a: m", datetime(2018, 6, 3, 13, 55)),
        ("13.06.18 21.25.15: a: m", datetime(2018, 6, 13, 21, 25, 15)),
        ("13.6.2018 klo 21.25.15 - a: m", datetime(2018, 6, 13, 21, 25, 15)),
        ("[06.13.18 21:25:15] a: m", datetime(2018, 6, 13, 21, 25, 15)),
        ("[2018/06/13, 21:25:15] a: m", datetime(2018, 6, 13, 21, 25, 15)),
        ("2018-06-13, 21:25 - a: m", datetime(2018, 6, 13, 21, 25)),
        ("2018. 6. 13. 오후 9:25 - a: m", datetime(2018, 6, 13, 21, 25)),
        ("[2018/6/13 下午9:25:15] a: m", datetime(2018, 6, 13, 21, 25, 15)),
        ("١٣/٦/٢٠١٨، ٩:٢٥ م - a: m", datetime(2018, 6, 13, 21, 25)),
        (f"{LRM}[13/6/18, 21:25:15] a: m", datetime(2018, 6, 13, 21, 25, 15)),
        # CLDR's short date in Arabic has a mark before each separator, d\u200f/M\u200f/y.
        (f"{RLM}1{RLM}/5{RLM}/2023، 3:05 م - a: m", datetime(2023, 5, 1, 15, 5)),
        (f"[٢٧{RLM}/٣{RLM}/٢٠٢٢، ٩:٥٣:٥٦{NARROW}م] a: m", datetime(2022, 3, 27, 21, 53, 56)),
        (f"{RLM}٢٧/٣/٢٠٢٢، ٩:٥٣:٥٦ م{RLM} - a: m", datetime(2022, 3, 27, 21, 53, 56)),
        (f"{RLM}٢/٤/٢٠٢٦ ١:٠٠ م - a: m", datetime(2026, 4, 2, 13, 0)),
    ],
)
def test_dates_of_many_places(path: Path, line: str, when: datetime) -> None:
    (found,) = read(path, line)
    assert found.turns == (Turn("user", "m", when, "a"),)


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (["3/6/18", "25/6/18"], [(6, 3), (6, 25)]),
        (["3/6/18", "6/25/18"], [(3, 6), (6, 25)]),
        # Nothing is above 12, but only one reading goes forward in time.
        (["01/02/18", "02/02/18", "01/03/18"], [(2, 1), (2, 2), (3, 1)]),
        (["02/01/18", "02/02/18", "03/01/18"], [(2, 1), (2, 2), (3, 1)]),
        # Both go forward; the number that changes more often is the day, whatever the dates look like.
        (["5/1/23", "6/1/23", "6/1/23", "8/1/23"], [(1, 5), (1, 6), (1, 6), (1, 8)]),
        (["01/05/23", "01/06/23", "01/08/23", "02/08/23"], [(1, 5), (1, 6), (1, 8), (2, 8)]),
        # Nothing tells: most of the world has the day first.
        (["03/04/18"], [(4, 3)]),
    ],
)
def test_the_whole_file_tells_days_from_months(path: Path, dates: list[str], days: list[tuple[int, int]]) -> None:
    found = read(path, "".join(f"{date}, 10:00 - Ana: hello\n" for date in dates))
    told = [turn.timestamp for conversation in found for turn in conversation.turns]
    assert [(when.month, when.day) for when in told if when] == days


def test_a_chat_is_not_later_than_its_file(path: Path) -> None:
    said = "5/1/23, 3:05 PM - Ana: hello\n"
    assert [c.timestamp for c in read(path, said)] == [datetime(2023, 5, 1, 15, 5)]
    written = datetime(2023, 1, 5, 16, tzinfo=UTC).timestamp()
    os.utime(path, (written, written))
    assert [c.timestamp for c in importers.read(path)] == [datetime(2023, 1, 5, 15, 5)]


def test_a_later_export_that_reveals_the_order_adds_only_what_is_new(path: Path, memory: LatentMemory) -> None:
    lines = [f"{day}/1/23, 3:05 PM - Ana: hello on day {day}\n" for day in (5, 6, 25)]
    assert memory.add(read(path, "".join(lines[:2]))).added == 2
    report = memory.add(read(path, "".join(lines)))
    assert (report.added, report.changed, report.unchanged) == (1, 0, 2)


@pytest.mark.parametrize(
    "text",
    [
        *("<Media omitted>", "<Medien ausgeschlossen>", "<Multimedia omitido>", f"{LRM}Bild weggelassen", "null"),
        *("image omitted", "Audio weggelassen", f"{LRM}<Anhang: 00000021-VCARD.vcf>", "STK-20230501-WA0001.webp"),
        *("report 3.pdf (file attached)", "IMG-20250330-WA0001.jpg (Datei angehängt)", "Se eliminó este mensaje."),
        *(
            "<メディアは含まれていません>",
            "<省略多媒体文件>",
            "< Média vynechána >",
            "<Medya atlanmış>",
            "<Без медиафайлов>",
        ),
        *("Dit bericht is verwijderd", "U hebt dit bericht verwijderd", "Bu mesaj silindi", "Bu mesajı sildiniz."),
        *(
            "Tämä viesti poistettiin.",
            "Poistit tämän viestin",
            "このメッセージは削除されました。",
            "تم حذف هذه الرسالة",
        ),
        *("Missed voice call", "Missed voice call, Tap to call back", "Missed group video call", "Voice call, 12 min"),
        *("Voice call, No answer", "Video call. 3 sec", "Voice call, 1 hr 3 min", "Silenced voice call, Focus mode"),
        *("Sprachanruf. 6 Sek.", "Verpasster Sprachanruf. Zum Zurückrufen tippen", "Videollamada. 12 minutos"),
        *("Chiamata vocale persa. \u200eTocca per richiamare", "Gemiste spraakoproep", "Cevapsız sesli arama"),
        *("<pièce jointe: plan.pdf>", f"{LRM}<kötve: 00000021-PHOTO-2023-05-01-09-13-20.jpg>"),
    ],
)
def test_what_nobody_wrote_is_left_out(path: Path, text: str) -> None:
    skipped: list[str] = []
    assert read(path, f"01/05/2023, 09:12 - Ana: {text}\n", on_skip=skipped.append) == []
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<3", "<3"),
        ("<grin>", "<grin>"),
        ("Was it an image omitted?", "Was it an image omitted?"),
        ("<Medien ausgeschlossen>\n4Bit.mod", "4Bit.mod"),
        ("Fertig! <Diese Nachricht wurde bearbeitet.>", "Fertig!"),
        ("at 10:00: breakfast", "at 10:00: breakfast"),
        ("video call tomorrow?", "video call tomorrow?"),
        ("Voice call was great, thank you", "Voice call was great, thank you"),
        ("Voice call me when you can", "Voice call me when you can"),
        ("Voice call", "Voice call"),
        ("Voice call, 12 min ago?", "Voice call, 12 min ago?"),
        ("Missed voice call from you, sorry", "Missed voice call from you, sorry"),
        ("<not sure if serious>", "<not sure if serious>"),
        ("<insert joke here>\nha", "<insert joke here>\nha"),
        ("Read this <Note: see report.pdf>", "Read this <Note: see report.pdf>"),
        ("Bu mesaj silindi mi?", "Bu mesaj silindi mi?"),
        ("<メディアなし>\n写真", "写真"),
        ("my list\n12/05/2023 10:00 milk: one", "my list\n12/05/2023 10:00 milk: one"),
        ("my list\n[12/05/2023, 10:00:00] Ben: quoted", "my list\n[12/05/2023, 10:00:00] Ben: quoted"),
    ],
)
def test_what_somebody_wrote_is_kept(path: Path, text: str, kept: str) -> None:
    assert texts(read(path, f"01/05/2023, 09:12 - Ana: {text}\r\n")) == [("Ana", kept)]


def test_a_nickname_in_quotation_marks_is_a_name(path: Path) -> None:
    assert texts(read(path, '01/05/2023, 09:12 - Ana "Nana" Silva: hello')) == [('Ana "Nana" Silva', "hello")]


def test_a_poll_is_kept(path: Path) -> None:
    poll = f"[01/05/2023, 09:12:00] Ana: {LRM}POLL:\nGreen or blue?\n{LRM}OPTION: Green (2 votes)\n"
    assert texts(read(path, poll)) == [("Ana", "POLL:\nGreen or blue?\nOPTION: Green (2 votes)")]


@pytest.mark.parametrize(
    ("archive", "member", "name"),
    [
        ("WhatsApp Chat - Ana.zip", "_chat.txt", "Ana"),
        ("WhatsApp Chat with Ana.zip", "WhatsApp Chat with Ana.txt", "Ana"),
        ("backup.zip", "WhatsApp-Chat mit Ana & Ben.txt", "Ana & Ben"),
        ("backup.zip", "WhatsApp Chat - Ana (2)/_chat.txt", "Ana"),
        ("backup.zip", "_chat.txt", "WhatsApp"),
    ],
)
def test_a_zip_is_read_and_names_the_chat(tmp_path: Path, archive: str, member: str, name: str) -> None:
    path = tmp_path / archive
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(member, ANDROID)
        zipped.writestr("IMG-20230501-WA0003.jpg", b"\xff\xd8")
    assert importers.recognise(path) == "whatsapp"
    found = list(importers.read(path))
    assert found[0].conversation_id == f"{name}/2023-05-01T09:12:00"
    assert len(texts(found)) == 5


def test_adding_twice_changes_nothing_and_a_longer_export_adds(path: Path, memory: LatentMemory) -> None:
    shorter = ANDROID[: ANDROID.index("02/05/2023, 08:00")]
    assert memory.add(read(path, shorter)).turns_added == 4
    assert memory.add(read(path, shorter)).unchanged == 2
    longer = ANDROID.replace("02/05/2023, 08:00", "02/05/2023, 07:59 - Ben: Good.\n02/05/2023, 08:00")
    report = memory.add(read(path, longer))
    assert (report.added, report.changed, report.unchanged) == (1, 1, 1)
    assert (report.turns_added, report.turns_changed) == (2, 0)


def test_an_export_that_begins_later_overwrites_nothing(path: Path, memory: LatentMemory) -> None:
    memory.add(read(path, ANDROID))
    report = memory.add(read(path, ANDROID[ANDROID.index("01/05/2023, 23:59") :]))
    assert (report.changed, report.turns_changed, report.unchanged) == (0, 0, 2)


def test_what_is_broken_is_told_and_left_out(path: Path) -> None:
    content = "31/04/2023, 10:00 - Ana: hello\n13/05/2023, 10:00 - Ana: there\n13/05/2023, 10:01 - Ana: caf\xe9\n"
    with pytest.raises(InputError, match=r"line 1: '31/04/2023' is no date where the day is first"):
        read(path, content.encode())
    errors: list[InputError] = []
    found = read(path, content.encode("latin-1"), on_bad=errors.append)
    assert texts(found) == [("Ana", "there")]
    assert [str(error).partition(", ")[2] for error in errors] == [
        "line 1: '31/04/2023' is no date where the day is first",
        "line 3: not UTF-8 (byte 28)",
    ]


def test_other_texts_are_not_taken_for_chats(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in (
        "2023-05-01 10:00:00 - INFO: started\n2023-05-01 10:00:01 - ERROR: failed\n",
        "Shopping\n01/05/2023, 09:12 - Ana: hello\n",
        "01/05/2023 rent: 900\n",
        "hello",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="unknown format"):
            importers.recognise(path)
    with pytest.raises(InputError, match="no line begins with a date and a time"):
        list(importers.read(path, source="whatsapp"))


@pytest.mark.parametrize("name", ["DJ", "ANA", "INFO", "DEBUG INFO"])
def test_a_name_in_capitals_is_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "renamed.txt"
    path.write_text(f"01/05/2023, 09:12 - {name}: hello\n01/05/2023, 09:13 - Ben: hi\n01/05/2023, 09:14 - Ben: so?\n")
    assert importers.recognise(path) == "whatsapp"
    assert texts(list(importers.read(path))) == [(name, "hello"), ("Ben", "hi"), ("Ben", "so?")]


@pytest.mark.parametrize(
    "form", ["[2024-05-01 10:0{}:00] {}: {}\n", "2024-05-01 10:0{} - {}: {}\n", "2024-05-01, 10:0{} - {}: {}\n"]
)
def test_a_chat_with_an_assistant_is_a_transcript(tmp_path: Path, form: str) -> None:
    path = tmp_path / "talk.txt"
    path.write_text(form.format(0, "User", "hello") + form.format(1, "Assistant", "hi"))
    assert importers.recognise(path) == "transcript"
    (found,) = importers.read(path)
    assert found.turns == (
        Turn("user", "hello", datetime(2024, 5, 1, 10)),
        Turn("assistant", "hi", datetime(2024, 5, 1, 10, 1)),
    )
    # A person can be called so; then the name that WhatsApp gives to the file tells.
    assert importers.recognise(path.rename(tmp_path / "WhatsApp Chat with Claude.txt")) == "whatsapp"


LINE = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", LRM, "["]),
    st.sampled_from(["1/5/23, 9:12 PM", "01/05/2023, 09:12", "99/99/9999, 99:99", "0000/00/00 00:00", "1.5.23 9:12 م"]),
    st.sampled_from([" - ", "] ", ": "]),
    st.text(max_size=20) | st.sampled_from(["Ana: hello", f"Ana: {LRM}image omitted", "Ana:", ": ", f"{LRM}: x"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE | st.text(max_size=20), max_size=6))
def test_any_text_is_read_or_refused(path: Path, lines: list[str]) -> None:
    read(path, "\n".join(lines).encode(errors="replace"), on_bad=lambda _: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(path: Path, content: bytes) -> None:
    # What begins as a zip and is none is refused as a whole.
    with contextlib.suppress(InputError):
        read(path, content, on_bad=lambda _: None)


def test_lines_and_names_that_were_made_to_take_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "chat.zip"
    line = "1/5/23, 15:05 - Ana: " + "•" * 200 + " " * 190 + "x\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("whatsapp with " * 600 + "\n/_chat.txt", line * 1_000)
    # In time that a test has: before, half a minute.
    (found,) = importers.read(path, source="whatsapp")
    assert len(found.turns) == 1_000
