"""Live conversations made of written questions: a follow-up that says "she" where the question had a name.

Two questions about the same person, whose evidence stands in the same session but in other turns, become a
conversation: the user asks the first, the assistant answers it, and the user asks the second with a pronoun in the
name's place. Who asks with the last message alone does not know whom; the conversation tells. As an upper bound stands
the second question as it was written.

Made at run time from LoCoMo's file, and kept nowhere.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from recall_data import CATEGORIES, Dataset, Question

# As (subject, object, possessive); whose name is in neither list is "they".
_SHE, _HE, _THEY = ("she", "her", "her"), ("he", "him", "his"), ("they", "them", "their")
_WOMEN = (
    "Alice Angela Anna Audrey Caroline Deborah Emily Emma Gina Joanna Jolene Julia Laura Lisa Maria Melanie Nina Sarah"
)
_MEN = "Andrew Calvin Daniel Dave David Evan James John Jon Mark Michael Nate Paul Peter Robert Sam Thomas Tim Tom"
_PRONOUNS = dict.fromkeys(_WOMEN.split(), _SHE) | dict.fromkeys(_MEN.split(), _HE)
# After one of these, and at the end of a sentence, a pronoun is an object.
_BEFORE_OBJECTS = (
    "about after against around at before behind beside besides between by for from in inspire inspired into like made "
    "make motivate motivated near of on over than through to toward towards with without"
)


class FollowUp(NamedTuple):
    """A live conversation, and its last question as it was written."""

    question: Question
    written: str


def follow_ups(dataset: Dataset) -> list[FollowUp]:
    """Make all live conversations that neighbouring questions about a person and a session give."""
    people = {
        scope: sorted({turn.name.split()[0] for talk in talks for turn in talk.turns if turn.name})
        for scope, talks in dataset.scopes.items()
    }
    groups: dict[tuple[str, str, str], list[Question]] = {}
    for question in dataset.questions:
        sessions = {session for session, _ in question.evidence}
        named = [name for name in people[question.scope] if _mention(name).search(question.text)]
        # An adversarial question has no answer: it asks one person for what the other did.
        if len(sessions) == len(named) == 1 and question.answer and question.category != CATEGORIES[5]:
            groups.setdefault((question.scope, named[0], sessions.pop()), []).append(question)
    return [
        _follow_up(first, second, name)
        for (_, name, _), asked in groups.items()
        for first, second in pairwise(asked)
        # Else the first question finds what the second asks for.
        if not first.evidence & second.evidence
    ]


def _follow_up(first: Question, second: Question, name: str) -> FollowUp:
    text = with_pronoun(second.text, name)
    messages = (
        {"role": "user", "content": first.text},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": text},
    )
    return FollowUp(second._replace(key=f"{second.key} after {first.key}", text=text, messages=messages), second.text)


def with_pronoun(text: str, name: str) -> str:
    """Return the text with each mention of a first name replaced by the pronoun that fits its place."""
    subject, object_, possessive = _PRONOUNS.get(name, _THEY)

    def pronoun(found: re.Match[str]) -> str:
        before, after = text[: found.start()], text[found.end() :]
        if found["owner"]:
            chosen = possessive
        elif re.match(r"\s*([?!.,;]|$)", after) or (before.lower().split() or [""])[-1] in _BEFORE_OBJECTS.split():
            chosen = object_
        else:
            chosen = subject
        return chosen.capitalize() if re.search(r"(^|[.?!])\s*$", before) else chosen

    return _mention(name).sub(pronoun, text)


def _mention(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}(?P<owner>['’]s|(?<=s)['’])?(?!\w)")
