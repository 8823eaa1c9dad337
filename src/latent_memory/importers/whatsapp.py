"""WhatsApp: an exported chat (`_chat.txt`, "WhatsApp Chat with Ana.txt"), or the zip that it came in.

    [01/05/2023, 09:12:44] Ana: Good morning         iOS
    01/05/2023, 09:12 - Ana: Good morning            Android

The phone writes dates as its language does. Whether days or months come first is told once for the whole file: by
numbers above 12, else by which of the two goes back in time less often, else by which number changes more often from
line to line (that is the day), else by which of the two is not later than the file itself, else by the look of the
dates. So a chat of a single day (or one in which both numbers change each time) can still be read the wrong way round;
a later export of it that tells more is then another conversation for each of its days.

A chat never ends, so it is cut: each day is a conversation. Its date is what people ask for ("what did we say on
Monday?"), and a later export of the same chat adds turns to its last day and days after it. The id is made of the
chat's name and the time of the day's first line, system lines included. So an export that begins in the middle of
a day (WhatsApp exports the latest 40,000 messages) is another conversation for that one day, and overwrites nothing.

Everybody in a chat is a person, so all have the role "user", with their names; Meta AI is the assistant. Left out are
WhatsApp's own lines ("Ana added Ben"), deleted messages, calls, and photos and files, but for their captions. An edited
message loses the mark that says so. Lines that WhatsApp writes are told from what people write by the mark for the
direction of writing that iOS puts before them, on Android by their whole wording. That is listed, for media that was
not exported, deleted messages and missed calls, in Arabic, Catalan, Chinese, Croatian, Czech, Danish, Dutch, English,
Finnish, French, German, Greek, Hebrew, Hindi, Hungarian, Indonesian, Italian, Japanese, Korean, Malay, Norwegian,
Persian, Polish, Portuguese, Romanian, Russian, Slovak, Spanish, Swedish, Thai, Turkish, Ukrainian and Vietnamese; for
other calls in English, German, Italian and Spanish. What is not listed is kept as if somebody had written it: a notice
too many does less harm than a message too few.

Source: WhatsApp documents nothing. The forms are those that Pustur/whatsapp-chat-parser reads (src/parser.ts); the
wordings are those that public parsers list: mlomb/chat-analytics (pipeline/parse/parsers/WhatsApp.ts),
starkdmi/whats_json (lib/src/patterns.dart, and its README for Arabic dates), JaydenCJ/chatcarve
(src/chatcarve/system.py and media.py) and matteogilioli/wa-chat-viewer (test/formats.test.mjs).

More than 500 lines: half of them are wordings of many languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from latent_memory.importers.base import Member, Reading, Sample, members
from latent_memory.importers.transcript import roles_of
from latent_memory.records import MOST_TURN_CHARACTERS, Conversation, Turn

DESCRIPTION = "WhatsApp chats (_chat.txt, WhatsApp Chat with NAME.txt, or their zip)"

# Direction marks, which iOS puts before what WhatsApp wrote itself, and a byte order mark.
_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_MARK = re.compile(f"[{_MARKS}]")
_AM = r"a\.?\s?m\.?|ص|上午|凌晨|早上|午前|오전|π\.?\s?μ\.?"
_PM = r"p\.?\s?m\.?|م|下午|中午|晚上|午後|오후|μ\.?\s?μ\.?"
# What may stand around a number: in Arabic, a mark stands before each separator of a date ("27\u200f/3\u200f/2022").
_GAP = rf"[{_MARKS}]*"
_HEAD = re.compile(
    rf"{_GAP}(?P<bracket>\[)?{_GAP}"
    rf"(?P<a>\d{{1,4}}){_GAP}(?P<separator>[-/.]){_GAP}\s?{_GAP}(?P<b>\d{{1,2}}){_GAP}(?P=separator){_GAP}\s?{_GAP}"
    rf"(?P<c>\d{{1,4}}){_GAP}[.]?{_GAP}[,،]?\s{_GAP}"
    rf"(?:klo\s|at\s|um\s|à\s)?(?:(?P<before>{_AM}|{_PM})\s?)?"
    rf"(?P<hour>\d{{1,2}})[.:](?P<minute>\d{{2}})(?:[.:](?P<second>\d{{2}}))?{_GAP}"
    rf"(?:\s?{_GAP}(?P<after>{_AM}|{_PM}))?{_GAP}"
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
    r"(?:(?:image|video|audio|sticker|gif|document|contact card|video note) omitted"
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
# iOS: "<attached: 00000042-PHOTO-2023-05-01.jpg>", behind the caption if there is one. In a language that is not
# listed, the number that iOS gives to each file tells.
_BEHIND = re.compile(
    r"<(?:(?:attached|Anhang|adjunto|archivo adjunto|pièce jointe|anexado|allegato|bijlage|вложение|прикреплено"
    r"|ekli dosya|添付|附件|첨부|مرفق|المُرفق):\s?[^<>\n]{1,200}|[^<>:\n]{2,30}:\s?\d{8}-[^<>\n]{1,200})\.\w{2,5}>$",
    re.IGNORECASE,
)


class _Wordings(NamedTuple):
    """What WhatsApp writes in one language in the place of a message, "|" between several."""

    media: str
    deleted: str
    missed: str


_WORDINGS = {
    "Arabic": _Wordings(
        "تم استبعاد الوسائط",
        "تم حذف هذه الرسالة|لقد حذَفت هذه الرسالة|أنت حذفت هذه الرسالة",
        "مكالمة صوتية فائتة|مكالمة فيديو فائتة",
    ),
    "Catalan": _Wordings(
        "fitxers multimèdia omesos|Mitjans omesos",
        "Aquest missatge s'ha suprimit|Aquest missatge està esborrat|Has suprimit aquest missatge"
        "|Has esborrat aquest missatge",
        "Trucada de veu perduda|Videotrucada perduda|Trucada de vídeo perduda",
    ),
    "Chinese": _Wordings(
        "忽略多媒體檔|省略多媒体文件|省略多媒體檔案",
        "此訊息已刪除|这条消息已被删除|信息已删除|此消息已删除|您已刪除此訊息|您已删除这条消息|您删除这个信息",
        "未接語音通話|未接语音通话|未接視像通話|未接視訊通話|未接视频通话",
    ),
    "Croatian": _Wordings(
        "medijski zapis izostavljen",
        "Ova je poruka izbrisana|Ova poruka je izbrisana|Izbrisali ste ovu poruku",
        "Propušteni glasovni poziv|Propušten glasovni poziv|Propušteni videopoziv|Propušten video poziv",
    ),
    "Czech": _Wordings(
        "média vynechány|Média vynechána",
        "Tato zpráva byla smazána|Tato zpráva byla odstraněna|Tuto zprávu jste smazal/a|Tuto zprávu jste odstranil/a",
        "Zmeškaný hlasový hovor|Zmeškaný videohovor",
    ),
    "Danish": _Wordings(
        "medier udeladt|Mediefil udeladt",
        "Denne besked er blevet slettet|Denne besked blev slettet|Du har slettet denne besked|Du slettede denne besked",
        "Ubesvaret taleopkald|Mistet opkald|Ubesvaret videoopkald",
    ),
    "Dutch": _Wordings(
        "Media weggelaten",
        "Dit bericht is verwijderd|U hebt dit bericht verwijderd|Je hebt dit bericht verwijderd",
        "Gemist spraakgesprek|Gemiste spraakoproep|Gemist videogesprek|Gemiste video-oproep",
    ),
    "English": _Wordings(
        "Media omitted|image omitted|video omitted|audio omitted|document omitted|GIF omitted|sticker omitted",
        "You deleted this message|This message was deleted|You deleted this message as admin"
        "|This message was deleted by an admin",
        "Missed voice call|Missed video call|Missed group voice call|Missed group video call|Missed group call"
        "|Silenced voice call|Silenced video call",
    ),
    "Finnish": _Wordings(
        "media jätettiin pois|Media jätetty pois",
        "Tämä viesti poistettiin|Poistit tämän viestin",
        "Vastaamaton äänipuhelu|Vastaamaton videopuhelu",
    ),
    "French": _Wordings(
        "médias omis|Fichier omis",
        "Ce message a été supprimé|Vous avez supprimé ce message",
        "Appel vocal manqué|Appel vidéo manqué",
    ),
    "German": _Wordings(
        "Medien ausgeschlossen|Medien weggelassen",
        "Diese Nachricht wurde gelöscht|Du hast diese Nachricht gelöscht",
        "Verpasster Sprachanruf|Verpasster Videoanruf",
    ),
    "Greek": _Wordings(
        "αρχείο παραλήφθηκε|Εξαίρεση πολυμέσων",
        "Αυτό το μήνυμα διαγράφηκε|Διαγράψατε αυτό το μήνυμα|Διαγράψατε το μήνυμα",
        "Αναπάντητη φωνητική κλήση|Αναπάντητη βιντεοκλήση",
    ),
    "Hebrew": _Wordings(
        "המדיה לא נכללה|מדיה הושמטה",
        "הודעה זו נמחקה|מחקת את ההודעה הזו|מחקת הודעה זו",
        "שיחה קולית שלא נענתה|שיחת וידאו שלא נענתה",
    ),
    "Hindi": _Wordings(
        "मीडिया के बिना",
        "यह मैसेज डिलीट कर दिया गया है|यह संदेश मिटाया गया|आपने यह मैसेज डिलीट किया|आपने यह संदेश मिटाया",
        "वॉइस कॉल मिस हुई|मिस्ड वॉइस कॉल|मिस्ड वीडियो कॉल",
    ),
    "Hungarian": _Wordings(
        "média elhagyva|Hiányzó médiafájl",
        "Ez az üzenet törlésre került|Ezt az üzenetet törölted|Törölted ezt az üzenetet",
        "Nem fogadott hanghívás|Nem fogadott videohívás|Nem fogadott videóhívás",
    ),
    "Indonesian": _Wordings(
        "media tidak disertakan",
        "Pesan ini dihapus|Pesan ini telah dihapus|Anda menghapus pesan ini|Anda telah menghapus pesan ini",
        "Panggilan suara tak terjawab|Panggilan video tak terjawab",
    ),
    "Italian": _Wordings(
        "media omessi|Media omesso",
        "Questo messaggio è stato eliminato|Hai eliminato questo messaggio",
        "Chiamata vocale persa|Videochiamata persa",
    ),
    "Japanese": _Wordings(
        "メディアなし|メディアは含まれていません",
        "このメッセージは削除されました|このメッセージを削除しました",
        "音声通話不在着信|ビデオ通話不在着信",
    ),
    "Korean": _Wordings(
        "미디어 파일 제외됨|미디어 파일을 생략한 대화내용",
        "이 메시지는 삭제되었습니다|삭제한 메시지입니다|이 메시지를 삭제했습니다|삭제된 메시지입니다",
        "부재중 전화|부재중 음성통화|부재중 영상통화",
    ),
    "Malay": _Wordings(
        "media dikecualikan|Media disingkirkan",
        "Mesej ini telah dipadam|Anda telah memadamkan mesej ini",
        "Panggilan suara terlepas|Panggilan video terlepas",
    ),
    "Norwegian": _Wordings(
        "media utelatt|Uten vedlegg",
        "Denne meldingen ble slettet|Du slettet denne meldingen",
        "Tapt taleanrop|Tapt videoanrop|Tapt videosamtale",
    ),
    "Persian": _Wordings(
        "رسانه حذف شد",
        "این پیام حذف شده است|این پیام حذف شد|شما این پیام را حذف کردید",
        "تماس صوتی پاسخ داده نشده|تماس تصویری پاسخ داده نشده",
    ),
    "Polish": _Wordings(
        "pominięto multimedia|pliki pominięto",
        "Ta wiadomość została usunięta|Usunąłeś(-ęłaś) tę wiadomość|Usunąłeś(aś) tę wiadomość",
        "Nieodebrane poł. głosowe|Nieodebrane poł. wideo|Nieodebrane połączenie",
    ),
    "Portuguese": _Wordings(
        "ficheiro não revelado|Mídia omitida|Mídia oculta|Arquivo de mídia oculto",
        "Esta mensagem foi apagada|Essa mensagem foi apagada|Esta mensagem foi apagada pelo remetente|Mensagem apagada"
        "|Apagou esta mensagem|Você apagou esta mensagem|Esta mensagem foi eliminada|Você eliminou esta mensagem",
        "Chamada de voz perdida|Chamada de vídeo perdida|Videochamada perdida",
    ),
    "Romanian": _Wordings(
        "conținut media omis",
        "Acest mesaj a fost șters|Ați șters acest mesaj",
        "Apel vocal ratat|Apel vocal nepreluat|Apel video ratat|Apel video nepreluat",
    ),
    "Russian": _Wordings(
        "без медиафайлов|Файл пропущен",
        "Данное сообщение удалено|Это сообщение было удалено|Вы удалили данное сообщение|Вы удалили это сообщение",
        "Пропущенный аудиозвонок|Пропущенный видеозвонок",
    ),
    "Slovak": _Wordings(
        "Médiá vynechané",
        "Táto správa bola odstránená|Túto správu ste odstránili",
        "Zmeškaný hovor|Zmeškaný videohovor",
    ),
    "Spanish": _Wordings(
        "Multimedia omitido|Archivo omitido|imagen omitida|video omitido|documento omitido|audio omitido|GIF omitido"
        "|sticker omitido",
        "Se eliminó este mensaje|Este mensaje fue eliminado|Eliminaste este mensaje",
        "Llamada perdida|Llamada de voz perdida|Videollamada perdida",
    ),
    "Swedish": _Wordings(
        "media utelämnat|Media har utelämnats",
        "Det här meddelandet raderades|Detta meddelande raderades|Du har tagit bort meddelandet"
        "|Du raderade det här meddelandet|Du raderade detta meddelande",
        "Missat röstsamtal|Missat videosamtal",
    ),
    "Thai": _Wordings(
        "ไฟล์สื่อถูกลบ|สื่อถูกลบ",
        "ข้อความนี้ถูกลบแล้ว|ข้อความนี้ได้ถูกลบ|คุณได้ลบข้อความนี้|คุณลบข้อความนี้",
        "สายที่ไม่ได้รับ|วิดีโอคอลที่ไม่ได้รับ|สายโทรวิดีโอที่ไม่ได้รับ",
    ),
    "Turkish": _Wordings(
        "medya dahil edilmedi|Medya atlanmış",
        "Bu mesaj silindi|Bu mesajı sildiniz",
        "Cevapsız sesli arama|Cevapsız görüntülü arama",
    ),
    "Ukrainian": _Wordings(
        "медіа пропущено",
        "Це повідомлення було видалено|Ви видалили це повідомлення",
        "Пропущений аудіодзвінок|Пропущений відеодзвінок",
    ),
    "Vietnamese": _Wordings(
        "bỏ qua tệp phương tiện|Bỏ qua Media",
        "Tin nhắn này đã bị xóa|Tin nhắn này đã bị xoá|Bạn đã xóa tin nhắn này|Bạn đã xoá tin nhắn này",
        "Cuộc gọi nhỡ|Cuộc gọi nhỡ video",
    ),
}


def _listed(kind: str) -> frozenset[str]:
    """Return the wordings of one kind in all languages, as `_bare` writes them."""
    return frozenset(_bare(text) for words in _WORDINGS.values() for text in getattr(words, kind).split("|"))


def _bare(text: str) -> str:
    """Return a text as the wordings are compared: without case, and without a full stop at its end."""
    return text.strip().rstrip(".。").casefold()


_MEDIA, _DELETED, _MISSED = (_listed(kind) for kind in _Wordings._fields)
# "Voice call, 12 min", "Missed voice call. Tap to call back", "Sprachanruf. 6 Sek.": after a stop or a comma, nothing
# but what became of the call. "Voice call" and no more may be somebody's answer.
_CALL = re.compile(
    r"(?P<call>[^\n.,]{5,40}?)[.,]\s(?:(?:tap|click) to call back|no answer|answered on other device|focus mode"
    r"|zum zurückrufen tippen|keine antwort|tocca per richiamare|sin respuesta|\d+ invited|try again"
    r"|(?:\d+\s?(?:h|hr|hrs|hours?|m|min|mins|minutes?|minutos?|minuten?|minuti?|s|sec|secs|seconds?|sek|std|seg|segundos?)"
    r"\b\.?\s?)+)\.?",
    re.IGNORECASE,
)
_CALLS = frozenset(
    {
        *("voice call", "video call", "group voice call", "group video call", "group call", "call failed"),
        *("sprachanruf", "videoanruf", "llamada de voz", "videollamada", "chiamata vocale", "videochiamata"),
    }
)
_EDITED = re.compile(
    r"<(?:This message was edited|Diese Nachricht wurde bearbeitet|Se editó este mensaje|Ce message a été modifié|"
    r"Questo messaggio è stato modificato|Mensagem editada|Esta mensagem foi editada)\.?>$",
    re.IGNORECASE,
)
# Nothing that WhatsApp writes is longer, file names included; what people write can be any length.
_LONGEST = 400
_LEVELS = frozenset({"TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"})
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
    names = [_MARK.sub("", sent["name"] or sent["alone"]).strip() for sent in said]
    if sample.path.suffix.lower() != ".txt" or not names:
        return False
    # A log has dates too, and a level where a chat has a name.
    if 2 * sum(name.split()[-1].strip("[]") in _LEVELS for name in names if name) > len(names):
        return False
    # A transcript with times has roles, which a chat has not.
    return not {"user", "assistant"} <= set(roles_of(names).values())


def conversations(path: Path, reading: Reading) -> Iterator[Conversation]:
    """Yield a chat, day by day; of an archive or a directory every chat in it."""
    wanted = "WhatsApp chat (_chat.txt)"
    for member in members(path, reading, lambda name: bool(_CHAT_FILE.fullmatch(PurePosixPath(name).name)), wanted):
        yield from _chat(member, _chat_name(path, member, reading), reading)


def _chat_name(path: Path, member: Member, reading: Reading) -> str | None:
    """Return whom the chat is with, from the name of the file, of its folder, or of the archive."""
    inside = PurePosixPath(member.name)
    near = [inside.stem, inside.parent.name] if member.name else []
    for told in (*near, Path(reading.name).stem, path.parent.name if not member.name else ""):
        # In an archive a name may be of any length, and hold lines.
        candidate = " ".join(told[:_LONGEST].split())
        if match := _NAMED.fullmatch(candidate):
            return str(match["name"])
        if "whatsapp" in candidate.lower():
            return re.sub(r"\s?\(\d+\)$", "", candidate)
    return None


def _chat(member: Member, name: str | None, reading: Reading) -> Iterator[Conversation]:
    form, days_first = _survey(member, reading.written)
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


def _survey(member: Member, written: datetime) -> tuple[_Form | None, bool]:
    """Read the whole file for how its lines begin, and whether days come before months."""
    form: _Form | None = None
    first: re.Match[str] | None = None
    above = [0, 0]
    back = [0, 0]
    changed = [0, 0]
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
            changed[0] += days[2] != before[0][2]
            changed[1] += months[2] != before[1][2]
        before = days, months
    if above[0] != above[1]:
        return form, above[0] > above[1]
    if back[0] != back[1]:
        return form, back[0] < back[1]
    # Between two messages the day changes more often than the month.
    if changed[0] != changed[1]:
        return form, changed[0] > changed[1]
    if before is not None:
        # What was exported was said before; a day is for time zones.
        late = [_later(date, written + timedelta(days=1)) for date in before]
        if late[0] != late[1]:
            return form, late[1]
    return form, not (first is not None and _looks_american(first))


def _later(date: tuple[int, ...], limit: datetime) -> bool:
    year, month, day = date
    return (year if year > 99 else year + 2000, month, day) > (limit.year, limit.month, limit.day)


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
    if _bare(plain) in _DELETED:
        reading.on_skip("a deleted message")
        return None
    if _is_call(plain):
        reading.on_skip("a call")
        return None
    first, _, rest = plain.partition("\n")
    caption = _without(_BEHIND, plain)
    if caption != plain:
        plain = caption
    elif len(first) <= _LONGEST and _stands_for_a_file(first.strip()):
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


def _is_call(text: str) -> bool:
    """Tell whether a whole message is WhatsApp's note of a call."""
    if _bare(text) in _MISSED:
        return True
    match = _CALL.fullmatch(text)
    return match is not None and (_bare(match["call"]) in _CALLS or _bare(match["call"]) in _MISSED)


def _stands_for_a_file(line: str) -> bool:
    """Tell whether a line is what WhatsApp wrote in the place of a photo, a file, or a contact."""
    if line.startswith("<") and line.endswith(">"):
        return _bare(line[1:-1]) in _MEDIA
    # A document has its name and length before it: "plan.pdf • 3 pages document omitted".
    words = line.rpartition("•")[2].split() if "•" in line else []
    wordings = (line, *(" ".join(words[-count:]) for count in range(2, 5) if len(words) > count))
    return _ATTACHED.fullmatch(line) is not None or any(map(_OMITTED.fullmatch, wordings))


def _without(form: re.Pattern[str], text: str) -> str:
    """Return a text without what stands at its end."""
    end = text[-_LONGEST:]
    kept = form.sub("", end)
    return text if kept == end else (text[:-_LONGEST] + kept).rstrip()
