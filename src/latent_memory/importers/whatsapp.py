"""WhatsApp: an exported chat (`_chat.txt`, "WhatsApp Chat with Ana.txt"), or the zip that it came in.

    [01/05/2023, 09:12:44] Ana: Good morning         iOS
    01/05/2023, 09:12 - Ana: Good morning            Android

The phone writes dates as its language does. Whether days or months come first is told once for the whole file: by
numbers above 12, else by which of the two goes back in time less often, else by the look of the dates.

A chat never ends, so it is cut: each day is a conversation. Its date is what people ask for ("what did we say on
Monday?"), and a later export of the same chat adds turns to its last day and days after it. The id is made of the
chat's name and the time of the day's first line, system lines included. So an export that begins in the middle of
a day (WhatsApp exports the latest 40,000 messages) is another conversation for that one day, and overwrites nothing.

Everybody in a chat is a person, so all have the role "user", with their names; Meta AI is the assistant. Left out are
WhatsApp's own lines ("Ana added Ben"), deleted messages, calls, and photos and files, but for their captions. An edited
message loses the mark that says so. Lines that WhatsApp writes are told from what people write by the mark for the
direction of writing that iOS puts before them, on Android by their form; lists of their wordings in seven languages
fill the gaps.

Source: WhatsApp documents nothing; the forms are those that Pustur/whatsapp-chat-parser reads, the wordings those that
public parsers list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from latent_memory.importers.base import Member, Reading, Sample, members
from latent_memory.records import MOST_TURN_CHARACTERS, Conversation, Turn

DESCRIPTION = "WhatsApp chats (_chat.txt, WhatsApp Chat with NAME.txt, or their zip)"

# Direction marks, which iOS puts before what WhatsApp wrote itself, and a byte order mark.
_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_MARK = re.compile(f"[{_MARKS}]")
_AM = r"a\.?\s?m\.?|ص|上午|凌晨|早上|午前|오전|π\.?\s?μ\.?"
_PM = r"p\.?\s?m\.?|م|下午|中午|晚上|午後|오후|μ\.?\s?μ\.?"
_HEAD = re.compile(
    rf"[{_MARKS}]*(?P<bracket>\[)?"
    r"(?P<a>\d{1,4})(?P<separator>[-/.])\s?[\u200f]?(?P<b>\d{1,2})(?P=separator)\s?[\u200f]?(?P<c>\d{1,4})[.]?[,،]?\s"
    rf"(?:klo\s|at\s|um\s|à\s)?(?:(?P<before>{_AM}|{_PM})\s?)?"
    r"(?P<hour>\d{1,2})[.:](?P<minute>\d{2})(?:[.:](?P<second>\d{2}))?"
    rf"(?:\s?(?P<after>{_AM}|{_PM}))?"
    r"(?P<end>\]\s|\s[-–]\s|:\s)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IS_PM = re.compile(_PM, re.IGNORECASE)
_SENDER = re.compile(r"(?P<name>[^\n]{1,120}?):\s(?P<text>.*)|(?P<alone>[^\n]{1,120}):", re.DOTALL)

# Android's own lines have no sender, but a colon may come later in them: 'Ana changed the subject to "Rome: May"'.
_NOTICE = re.compile(
    r"\b(?:added|removed|created (?:the )?group|changed (?:the|this|their|to)|joined using|end-to-end|Ende-zu-Ende|"
    r"extremo a extremo|bout en bout|hinzugefügt|cambió|ha cambiato)\b",
    re.IGNORECASE,
)
_QUOTES = re.compile('["“”„«»]')
# Of the wordings that public parsers list: what stands for a photo, a file, a contact that was not exported.
_OMITTED = re.compile(
    # A document has its name and length before it: "plan.pdf • 3 pages document omitted".
    r"(?:[^\n]*•[^\n]*\s)?(?:(?:image|video|audio|sticker|gif|document|contact card|video note) omitted"
    r"|(?:bild|video|audio|sticker|gif|dokument|kontaktkarte) (?:weg|aus)gelassen"
    r"|(?:imagen|video|audio|sticker|gif|documento|tarjeta de contacto) omitid[oa]"
    r"|(?:image|vidéo|audio|sticker|gif|document|fiche contact) (?:absente?|omis|retiré|manquante?)"
    r"|(?:immagine|video|audio|sticker|gif|documento|scheda contatto) (?:omess[oa]|esclusa|non incluso)"
    r"|(?:imagem|vídeo|ficheiro de áudio|sticker|gif|documento|contacto) não revelad[oa]"
    r"|(?:изображение|видео|аудио|gif|документ|карточка контакта) отсутствует|стикер не добавлен)"
    r"|null",
    re.IGNORECASE,
)
_ATTACHED = re.compile(
    r"[^\n]{1,200}\.\w{2,5} \((?:file attached|Datei angehängt|archivo adjunto|fichier joint|file allegato|"
    r"arquivo anexado|ficheiro anexado|bestand bijgevoegd|файл добавлен|dosya ekli)\)"
    r"|(?:IMG|VID|AUD|PTT|STK|DOC)-\d{8}-WA\d+\.\w{2,5}(?: \([^()\n]{3,40}\))?",
    re.IGNORECASE,
)
_IN_ANGLES = re.compile(r"<[^<>\s]+(?: [^<>\s]+)+>")
# iOS: "<attached: 00000042-PHOTO-2023-05-01.jpg>", behind the caption if there is one.
_BEHIND = re.compile(r"<[^<>:\n]{3,20}:\s[^<>\n]{1,200}\.\w{2,5}>$")
_DELETED = re.compile(
    r"(?:You deleted this message|This message was deleted|Du hast diese Nachricht gelöscht|"
    r"Diese Nachricht wurde gelöscht|Eliminaste este mensaje|Se eliminó este mensaje|Este mensaje fue eliminado|"
    r"Vous avez supprimé ce message|Ce message a été supprimé|Hai eliminato questo messaggio|"
    r"Questo messaggio è stato eliminato|Apagou esta mensagem|Você apagou esta mensagem|Esta mensagem foi apagada|"
    r"Mensagem apagada|Вы удалили данное сообщение|Данное сообщение удалено)\.?",
    re.IGNORECASE,
)
_EDITED = re.compile(
    r"<(?:This message was edited|Diese Nachricht wurde bearbeitet|Se editó este mensaje|Ce message a été modifié|"
    r"Questo messaggio è stato modificato|Mensagem editada|Esta mensagem foi editada)\.?>$",
    re.IGNORECASE,
)
# Nothing that WhatsApp writes is longer, file names included; what people write can be any length.
_LONGEST = 400
_CALL = re.compile(r"(?:missed )?(?:voice|video|group voice|group video) call\b[^\n]{0,60}", re.IGNORECASE)

_CHAT_FILE = re.compile(r"_chat(?: ?\(\d+\))?\.txt|.*whatsapp.*\.txt", re.IGNORECASE)
# "WhatsApp Chat with Ana", "WhatsApp Chat - Ana", "WhatsApp-Chat mit Ana", "Chat de WhatsApp con Ana", ...
_NAMED = re.compile(
    r"(?:.*whatsapp.*?\s(?:with|mit|con|avec|com|met|med|с)|whatsapp chat -)\s+(?P<name>.+?)(?:\s?\(\d+\))?",
    re.IGNORECASE,
)


class _Form(NamedTuple):
    """How the lines of one file begin; a line that begins otherwise goes on with the message before it."""

    bracket: bool
    end: str
    separator: str


class _Line(NamedTuple):
    """A line with a date: one message, or a line of WhatsApp's own."""

    number: int
    head: re.Match[str]
    text: str


def recognises(sample: Sample) -> bool:
    """Tell whether a text begins as an exported chat does, or an archive holds one by its name."""
    if sample.members:
        return any(_CHAT_FILE.fullmatch(PurePosixPath(name).name) for name in sample.members)
    if isinstance(sample.first, (dict, list)):
        return False
    lines = sample.start.decode(errors="ignore").splitlines()[:200]
    heads = [head for line in lines if (head := _HEAD.fullmatch(line))]
    said = [sent for head in heads if (sent := _SENDER.fullmatch(head["rest"]))]
    if not heads or not lines or not _HEAD.fullmatch(next((line for line in lines if line.strip()), "")):
        return False
    if _CHAT_FILE.fullmatch(sample.path.name):
        return True
    # A log has dates too, and a level where a chat has a name.
    names = {sent["name"] or sent["alone"] for sent in said}
    return sample.path.suffix.lower() == ".txt" and bool(said) and not any(name.isupper() for name in names)


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield a chat, day by day; of an archive or a directory every chat in it."""
    wanted = "WhatsApp chat (_chat.txt)"
    for member in members(path, reading, lambda name: bool(_CHAT_FILE.fullmatch(PurePosixPath(name).name)), wanted):
        yield from _chat(member, _chat_name(path, member, reading), reading)


def _chat_name(path: Path, member: Member, reading: Reading) -> str | None:
    """Return whom the chat is with, from the name of the file, of its folder, or of the archive."""
    inside = PurePosixPath(member.name)
    near = [inside.stem, inside.parent.name] if member.name else []
    for candidate in (*near, Path(reading.name).stem, path.parent.name if not member.name else ""):
        if match := _NAMED.fullmatch(candidate):
            return str(match["name"])
        if "whatsapp" in candidate.lower():
            return re.sub(r"\s?\(\d+\)$", "", candidate)
    return None


def _chat(member: Member, name: str | None, reading: Reading) -> Iterator[Conversation]:
    form, days_first = _survey(member)
    if form is None:
        reading.bad(member.name, "no line begins with a date and a time, as those of an exported chat do")
        return
    day: datetime | None = None
    begun = datetime.min
    turns: list[Turn] = []
    for line in _messages(member, form, reading):
        where = member.where(f"line {line.number}")
        try:
            when = _when(line.head, days_first)
        except ValueError:
            reading.bad(where, f"{_date(line.head)!r} is no date where the {'day' if days_first else 'month'} is first")
            continue
        if day is None or when.date() != day.date():
            yield from _conversation(name, begun, turns, reading)
            day, begun, turns = when, when, []
        turn = _turn(line.text, when, where, reading)
        if turn is not None:
            turns.append(turn)
    yield from _conversation(name, begun, turns, reading)


def _conversation(name: str | None, begun: datetime, turns: list[Turn], reading: Reading) -> Iterator[Conversation]:
    if turns:
        identifier = f"{name or 'WhatsApp'}/{begun.isoformat()}"
        made = reading.conversation(identifier, identifier, turns, metadata={"chat": name})
        if made is not None:
            yield made


# -- lines --------------------------------------------------------------------------------------------------


def _messages(member: Member, form: _Form, reading: Reading) -> Iterator[_Line]:
    """Yield each message with the lines that it goes on over."""
    number, head, parts, size = 0, None, [""], 0
    for at, text in _decoded(member, reading):
        found = _head(text, form)
        if found is None:
            size += len(text)
            # Enough to be refused as a turn, and no more.
            if head is not None and size <= 2 * MOST_TURN_CHARACTERS:
                parts.append(text)
            elif head is None and text.strip():
                reading.on_skip("a line before the first message")
            continue
        if head is not None:
            yield _Line(number, head, "\n".join(parts))
        number, head, parts, size = at, found, [found["rest"]], len(text)
    if head is not None:
        yield _Line(number, head, "\n".join(parts))


def _decoded(member: Member, reading: Reading | None) -> Iterator[tuple[int, str]]:
    with member.open() as stream:
        for number, line in enumerate(iter(lambda: stream.readline(4 * MOST_TURN_CHARACTERS), b""), start=1):
            try:
                yield number, line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                if reading is not None:
                    reading.bad(member.where(f"line {number}"), f"not UTF-8 (byte {error.start})")


def _head(text: str, form: _Form | None) -> re.Match[str] | None:
    match = _HEAD.fullmatch(text)
    return match if match is not None and form in (None, _form(match)) else None


def _form(head: re.Match[str]) -> _Form:
    return _Form(head["bracket"] is not None, head["end"].strip(), head["separator"])


# -- dates --------------------------------------------------------------------------------------------------


def _survey(member: Member) -> tuple[_Form | None, bool]:
    """Read the whole file for how its lines begin, and whether days come before months."""
    form: _Form | None = None
    first: re.Match[str] | None = None
    above = [0, 0]
    back = [0, 0]
    before: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    for _, text in _decoded(member, None):
        head = _head(text, form)
        if head is None:
            continue
        if form is None:
            form, first = _form(head), head
        a, b, c = int(head["a"]), int(head["b"]), int(head["c"])
        if len(head["a"]) == 4:
            continue
        above[0] += a > 12
        above[1] += b > 12
        days, months = (c, b, a), (c, a, b)
        if before is not None:
            back[0] += days < before[0]
            back[1] += months < before[1]
        before = days, months
    if above[0] != above[1]:
        return form, above[0] > above[1]
    if back[0] != back[1]:
        return form, back[0] < back[1]
    return form, not (first is not None and _looks_american(first))


def _looks_american(head: re.Match[str]) -> bool:
    """Tell whether a date is written as in the United States, "5/1/23, 3:05 PM": nothing else tells in such a file."""
    short = not head["a"].startswith("0") and not head["b"].startswith("0") and len(head["c"]) == 2
    return head["separator"] == "/" and short and (head["after"] or "") in ("AM", "PM")


def _when(head: re.Match[str], days_first: bool) -> datetime:
    """Return the time of a line.

    Raises:
        ValueError: if there is no such day or hour.
    """
    a, b, c = int(head["a"]), int(head["b"]), int(head["c"])
    if len(head["a"]) == 4:
        year, month, day = a, b, c
    else:
        year = c + 2000 if len(head["c"]) <= 2 else c
        day, month = (a, b) if days_first else (b, a)
    hour = int(head["hour"])
    half = head["before"] or head["after"]
    if half:
        if hour > 12 and not _IS_PM.fullmatch(half):
            raise ValueError
        hour = hour % 12 + (12 if _IS_PM.fullmatch(half) else 0)
    return datetime(year, month, day, hour, int(head["minute"]), int(head["second"] or 0))


def _date(head: re.Match[str]) -> str:
    return str(head["separator"].join((head["a"], head["b"], head["c"])))


# -- what was said ------------------------------------------------------------------------------------------


def _turn(line: str, when: datetime, where: str, reading: Reading) -> Turn | None:
    sent = _SENDER.fullmatch(line)
    name = (sent["name"] or sent["alone"]) if sent else ""
    # An odd quotation mark: the colon is inside of what is quoted.
    if sent is None or _NOTICE.search(name) or len(_QUOTES.findall(name)) % 2:
        reading.on_skip("a notice of WhatsApp's")
        return None
    text = sent["text"] or ""
    said = _said(text, reading)
    if said is None:
        return None
    # "~ Ana" is how somebody calls herself who is not among the contacts.
    name = _MARK.sub("", name).replace("\u00a0", " ").strip().removeprefix("~").strip()
    return reading.turn(where, "assistant" if name == "Meta AI" else "user", said, when, name)


def _said(text: str, reading: Reading) -> str | None:
    """Return what a person wrote; None, and a word to `on_skip`, if it was WhatsApp that wrote it."""
    by_whatsapp = text.lstrip(" ").startswith("\u200e")
    plain = _without(_EDITED, _MARK.sub("", text).strip())
    if _DELETED.fullmatch(plain):
        reading.on_skip("a deleted message")
        return None
    if _CALL.fullmatch(plain):
        reading.on_skip("a call")
        return None
    first, _, rest = plain.partition("\n")
    caption = _without(_BEHIND, plain)
    if caption != plain:
        plain = caption
    elif len(first) <= _LONGEST and any(form.fullmatch(first.strip()) for form in (_IN_ANGLES, _ATTACHED, _OMITTED)):
        plain = rest
    elif by_whatsapp and not rest and "://" not in plain:
        reading.on_skip("a notice of WhatsApp's")
        return None
    else:
        return plain
    if not plain.strip():
        reading.on_skip("a photo or a file")
        return None
    return plain.strip()


def _without(form: re.Pattern[str], text: str) -> str:
    """Return a text without what stands at its end."""
    end = text[-_LONGEST:]
    kept = form.sub("", end)
    return text if kept == end else (text[:-_LONGEST] + kept).rstrip()
