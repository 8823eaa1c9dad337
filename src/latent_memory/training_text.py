"""Conversations -> what a language model is trained on, to hold them in its weights.

Two kinds: the record (the turns as a memory block shows them), and questions whose answers are in it. The questions
are made by rules, most of them for English: of any sentence, who said it, when, and what was said about its rarest
words; of "I went hiking yesterday", when that was, counted from the day it was said, and what was done. No model takes
part, and none is needed: `chat_examples` is for trainers of any kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

from latent_memory.context import day_heading, heading, written
from latent_memory.errors import InputError
from latent_memory.passages import sentences
from latent_memory.records import Conversation, Passage, Turn
from latent_memory.times import in_words

# "talk": the conversation as it was, in the roles it had. "record": its text, asked for by its day.
KINDS = ("talk", "record", "when", "who", "about", "fact")
QUESTIONS = ("when", "who", "about", "fact")

# A sentence of fewer words tells nothing apart, and one of more is no answer.
_LEAST_WORDS, _MOST_WORDS = 5, 40
# How much of a turn a stretch of the record holds at most, in characters; a stretch is about one step of training.
STRETCH = 1_600
_MOST_ABOUT = 2

_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_SHARED = re.compile(r"\s*\[[^\[\]]*\]\s*$")


class Stretch(NamedTuple):
    """Turns that follow one another in a conversation, and what can be learnt of them.

    Attributes:
        conversation_id: of the conversation.
        turns: their places in it.
        record: their text, as a memory block shows it.
        questions: (kind, question, answer).
    """

    conversation_id: str
    turns: tuple[int, ...]
    record: str
    questions: tuple[tuple[str, str, str], ...]


def chat_examples(
    conversations: Iterable[Conversation], kinds: Iterable[str] = ("record", *QUESTIONS), *, system: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield training examples as chats: {"messages": [{"role": ..., "content": ...}, ...]}.

    Args:
        conversations: any number; they are gone through one at a time.
        kinds: some of `KINDS`.
        system: a system message to begin each with; "" for none.

    Raises:
        InputError: for a kind that is unknown.
    """
    wanted = set(_kinds(kinds))
    first = [{"role": "system", "content": system}] if system else []
    for conversation in conversations:
        if "talk" in wanted and (told := _talk(conversation)):
            yield {"messages": [*first, *told]}
        if wanted == {"talk"}:
            continue
        for stretch in stretches(conversation):
            if "record" in wanted:
                day = in_words(_time(conversation, conversation.turns[stretch.turns[0]]))
                yield _chat(first, f"What was said on {day}?", stretch.record.strip())
            for kind, question, answer in stretch.questions:
                if kind in wanted:
                    yield _chat(first, question, answer)


def stretches(conversation: Conversation, most: int = STRETCH) -> Iterator[Stretch]:
    """Yield a conversation in stretches of about `most` characters, each with its headings and its questions."""
    turns = conversation.turns
    spread = Counter(word for turn in turns for word in {w.lower() for w in _WORD.findall(turn.text)})
    places: list[int] = []
    lines: list[str] = []
    last = ""
    size = 0

    def made() -> Stretch:
        asked = [q for i in places for q in _questions(conversation, turns[i], spread)]
        return Stretch(conversation.conversation_id or "", tuple(places), "".join(lines), tuple(dict.fromkeys(asked)))

    for i, turn in enumerate(turns):
        time = _time(conversation, turn)
        line = written(_passage(conversation, turn, i, time))
        if places and size + len(line) > most:
            yield made()
            places, lines, last, size = [], [], "", 0
        if not lines:
            lines.append(heading(_title(conversation), time))
        elif in_words(time) != last:
            lines.append(day_heading(time))
        last = in_words(time)
        places.append(i)
        lines.append(line)
        size += len(line)
    if places:
        yield made()


def _kinds(kinds: Iterable[str]) -> list[str]:
    told = [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [each for each in told if each not in KINDS]
    if unknown or not told:
        raise InputError(f"kinds: {', '.join(map(repr, unknown)) or 'none'}; use some of {', '.join(KINDS)}")
    return told


def _chat(first: Sequence[dict[str, str]], question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def _talk(conversation: Conversation) -> list[dict[str, str]]:
    """Return the turns in the roles they had, those of one role in a row as one; from the first to the last pair."""
    names = len({turn.name for turn in conversation.turns if turn.name}) > 1
    told: list[dict[str, str]] = []
    for turn in conversation.turns:
        if turn.role not in ("user", "assistant"):
            continue
        text = f"{turn.name}: {turn.text}" if names and turn.name else turn.text
        if told and told[-1]["role"] == turn.role:
            told[-1]["content"] += f"\n\n{text}"
        else:
            told.append({"role": turn.role, "content": text})
    if told and told[0]["role"] == "assistant":
        told.pop(0)
    if told and told[-1]["role"] == "user":
        told.pop()
    return told


def _time(conversation: Conversation, turn: Turn) -> datetime:
    time = turn.timestamp or conversation.timestamp
    if time is None:
        raise InputError(f"conversation {conversation.conversation_id!r}: no time; take it from a memory, or give one")
    return time


def _title(conversation: Conversation) -> str:
    # Titles that are generated repeat a turn.
    return "" if "title" in conversation.generated else conversation.title or ""


def _passage(conversation: Conversation, turn: Turn, place: int, time: datetime) -> Passage:
    return Passage("", conversation.conversation_id or "", place, turn.role, turn.name, turn.text, time, "")


# -- questions --------------------------------------------------------------------------------------------


def _questions(conversation: Conversation, turn: Turn, spread: Counter[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, question, answer) of one turn."""
    who = turn.name or {"user": "I", "assistant": "you"}.get(turn.role, "")
    if not who:
        return
    time = _time(conversation, turn)
    about = 0
    for sentence in sentences(_SHARED.sub("", turn.text)):
        words = _WORD.findall(sentence)
        if not _LEAST_WORDS <= len(words) <= _MOST_WORDS or sentence.endswith("?"):
            continue
        quoted = sentence.rstrip(".!… ")
        yield "when", _pick(_WHEN, sentence).format(who=who, said=quoted), in_words(time)
        if turn.name:
            yield "who", _pick(_WHO, sentence).format(said=quoted), turn.name
        # Once at least, so that it is known; the rarer the more telling.
        rare = sorted((w for w in words if len(w) > 3 and w.lower() not in _COMMON), key=lambda w: spread[w.lower()])
        if rare and about < _MOST_ABOUT:
            about += 1
            topic = " ".join(w for w in words if w in rare[:2])
            yield "about", _pick(_ABOUT, sentence).format(who=who, topic=topic), sentence
        yield from _facts(who, sentence, time)


_WHEN = (
    'When did {who} say "{said}"?',
    'On what date did {who} say "{said}"?',
    'When was it that {who} said "{said}"?',
)
_WHO = ('Who said "{said}"?', 'Who told about this: "{said}"?')
_ABOUT = ("What did {who} say about {topic}?", "What do you remember {who} telling about {topic}?")
_COMMON_WORDS = """
    about after again also always been before being could doing does don't from going gonna have having here into it's
    just know like love made make making more most much need other over really same should some someone something still
    such than thank thanks that that's their them then there these they thing things think this those time totally very
    want wanted well were what when where which while will with would yeah you're your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def _facts(who: str, sentence: str, time: datetime) -> Iterator[tuple[str, str, str]]:
    """Yield what an English sentence in the first person tells, asked in the third."""
    text, when = _resolved(sentence.rstrip(".!… "), time)
    is_, does = ("am", "do") if who == "I" else ("are", "do") if who == "you" else ("is", "does")
    whose = {"I": "my", "you": "your"}.get(who, f"{who}'s")
    if match := _DID.search(text):
        base = _base(match["verb"].lower())
        rest = _third(match["rest"])
        if base and rest:
            yield "fact", f"When did {who} {base} {rest}?", when or in_words(time)
            clause = _CLAUSE.split(rest)[0]
            if len(clause.split()) > 1 and not _LINK.match(clause):
                yield "fact", f"What did {who} {base}?", clause
            elif link := _LINK.match(clause):
                noun = clause[link.end() :]
                if noun:
                    ask = "Where" if link[1] in ("to", "at") else "What"
                    tail = "" if ask == "Where" and link[1] == "to" else f" {link[1]}"
                    yield "fact", f"{ask} did {who} {base}{tail}?", noun
    if (match := _DOING.search(text)) and (rest := _CLAUSE.split(_third(match["rest"]))[0]):
        link = _LINK.match(rest)
        tail, noun = (f" {link[1]}", rest[link.end() :]) if link else ("", rest)
        if noun:
            yield "fact", f"What {is_} {who} {match['verb']}{tail}?", noun
        if when:
            yield "fact", f"When {is_} {who} {match['verb']} {rest}?", when
    if (match := _LIKES.search(text)) and (rest := _CLAUSE.split(_third(match["rest"]))[0]):
        yield "fact", f"What {does} {who} {match['verb'].lower()}?", rest
    if match := _MY.search(text):
        rest = _CLAUSE.split(_third(match["rest"]))[0]
        if rest:
            yield "fact", f"What {match['verb']} {whose} {match['noun']}?", rest


_DID = re.compile(r"\bI(?:'ve|’ve| have)?(?: just| also| finally| recently| even)? (?P<verb>[a-z]+) (?P<rest>.+)")
_DOING = re.compile(r"\b(?:I'm|I’m|I am|I've been|I’ve been)(?: really| so| also)? (?P<verb>[a-z]+ing) (?P<rest>.+)")
_LIKES = re.compile(
    r"\bI(?: really| also| just)? (?P<verb>love|like|enjoy|want|need|prefer|hate|have|use|play|own|plan|hope|collect|"
    r"believe|work|live|teach|study) (?P<rest>.+)"
)
_MY = re.compile(r"\b[Mm]y (?P<noun>[a-z]+(?: [a-z]+)?) (?P<verb>is|are|was|were) (?P<rest>.+)")
_CLAUSE = re.compile(r"\s*(?:[,;:(]| - | – | and (?:it|they|that|we|he|she)\b| but | because | so (?:that )?| which )")
_LINK = re.compile(r"(to|at|on|in|for|about|with|of|into|from)\s+")
_THIRD = {
    **{"i": "they", "i'm": "they are", "i've": "they have", "i'll": "they will", "i'd": "they would"},
    **{"me": "them", "my": "their", "mine": "theirs", "myself": "themselves"},
    **{"we": "they", "us": "them", "our": "their", "ours": "theirs"},
}


def _third(text: str) -> str:
    return re.sub(r"[A-Za-z]+(?:['’][a-z]+)?", lambda m: _THIRD.get(m[0].lower().replace("’", "'"), m[0]), text).strip()


# As verbs are looked up in their past tense; others than these end in "ed".
_PAST = """
    went/go had/have got/get made/make took/take saw/see came/come met/meet found/find gave/give told/tell felt/feel
    left/leave bought/buy began/begin ran/run won/win lost/lose wrote/write read/read did/do built/build spent/spend
    taught/teach thought/think brought/bring caught/catch kept/keep sang/sing drew/draw drove/drive flew/fly heard/hear
    held/hold learnt/learn knew/know led/lead paid/pay put/put rode/ride sent/send slept/sleep spoke/speak stood/stand
    swam/swim threw/throw understood/understand wore/wear grew/grow chose/choose broke/break ate/eat fell/fall sold/sell
    died/die gone/go been/be done/do seen/see taken/take written/write given/give
"""
_IRREGULAR = dict(pair.split("/") for pair in _PAST.split())
_DOUBLED = re.compile(r"(.*[^aeiou][aeiou])([bdgklmnprt])\2$")
_KEEPS_E = re.compile(r".*(?:[^aeiou][aeiou][vcszkmnrtgdpl]|[vcszu]|[aeiou]+[vszc]|dg|ng|[bgtckpdf]l)$")
# Such as end like those above, and have no e.
_NO_E = re.compile(
    r".*(?:open|happen|listen|visit|offer|discover|remember|wonder|answer|order|enter|consider|gather|"
    r"volunteer|edit|finish|bring|hang|belong|long|appear|stop|plan|cover|limit|harvest|travel|cancel)$"
)


def _base(verb: str) -> str:
    """Return an English verb's base form of its past tense; "" if it is none."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if not verb.endswith("ed") or len(verb) < 5:
        return ""
    if verb.endswith("ied"):
        return f"{verb[:-3]}y"
    stem = verb[:-2]
    if _NO_E.match(stem):
        return stem
    if doubled := _DOUBLED.match(stem):
        return stem if stem.endswith("ll") else doubled[1] + doubled[2]
    return f"{stem}e" if _KEEPS_E.match(stem) else stem


def _pick(forms: Sequence[str], text: str) -> str:
    return forms[blake2b(text.encode(), digest_size=2).digest()[0] % len(forms)]


# -- times that are told from the day they were said ------------------------------------------------------

_UNITS = ("day", "week", "month", "year")
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "a couple of": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_WEEKDAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_TIME = re.compile(
    rf"\s*\b(?:(?P<day>yesterday|today|tonight|tomorrow|this morning|last night)"
    rf"|(?P<way>last|next|this) (?P<unit>week|weekend|month|year|{_WEEKDAYS})"
    rf"|(?P<number>\d+|{'|'.join(_NUMBERS)}) (?P<ago>{'|'.join(_UNITS)})s? ago)\b",
    re.IGNORECASE,
)


def _resolved(text: str, said: datetime) -> tuple[str, str]:
    """Return a text without the first time in it that counts from the day it was said, and that time; "" if none."""
    match = _TIME.search(text)
    if match is None:
        return text, ""
    return " ".join(f"{text[: match.start()]}{text[match.end() :]}".split()), _counted(match, said)


def _counted(match: re.Match[str], said: datetime) -> str:
    day = in_words(said)
    if match["day"]:
        ahead = {"yesterday": -1, "last night": -1, "tomorrow": 1}.get(match["day"].lower(), 0)
        return in_words(said + timedelta(ahead))
    if match["ago"]:
        unit = match["ago"].lower()
        number = _NUMBERS.get(match["number"].lower()) or int(match["number"])
        if number > 200:
            return ""
        if unit == "day":
            return in_words(said - timedelta(number))
        if unit == "year":
            return str(max(1, said.year - number))
        if unit == "month":
            return _month(said, -number)
        return f"{number} weeks before {day}" if number > 1 else f"the week before {day}"
    way, unit = match["way"].lower(), match["unit"].lower()
    step = {"last": -1, "this": 0, "next": 1}[way]
    if unit == "year":
        return str(said.year + step)
    if unit == "month":
        return _month(said, step)
    # As it is written, but for names.
    name = unit.capitalize() if unit in _WEEKDAYS else unit
    return f"the {name} {'before' if step < 0 else 'after' if step else 'of'} {day}"


def _month(said: datetime, step: int) -> str:
    """Return the month so many from the one of a day, "June 2023"; "" before the first year."""
    years, month = divmod(said.year * 12 + said.month - 1 + step, 12)
    return in_words(datetime(years, month + 1, 1)).removeprefix("1 ") if 1 <= years <= 9999 else ""
