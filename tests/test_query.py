"""What is asked: the last message of a live conversation, with what it leans on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from latent_memory import Turn
from latent_memory.query import query_text, reference


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        (["Where did Ana buy the lamp?"], "Where did Ana buy the lamp?"),
        # Fewer than five words say nothing by themselves.
        (
            ["Where is Ana's lamp?", "In Osaka.", "And the second one?"],
            "Where is Ana's lamp?\nIn Osaka.\nAnd the second one?",
        ),
        # Who "she" is was said before; words that only begin a sentence are no names.
        (
            [
                "What has Ana said of Ben Okri?",
                "That He is in Osaka. She likes I think.",
                "Why did she move there at all?",
            ],
            "Why did she move there at all? (Ana Ben Okri He Osaka)",
        ),
        # Only what was said just before.
        (
            ["Tell me of Cleo.", "Cleo is well.", "And of Ben?", "He met Ana.", "What did he say to her then?"],
            "What did he say to her then? (Ben Ana)",
        ),
        # One that tells what it means needs no help.
        (
            ["What has Ana said?", "Nothing.", "Where do people buy lamps in Kyoto?"],
            "Where do people buy lamps in Kyoto?",
        ),
        (["what has ana said?", "nothing much.", "Why did she move there?"], "Why did she move there?"),
    ],
)
def test_the_last_message_and_what_it_leans_on(texts: list[str], asked: str) -> None:
    assert query_text(said(*texts)) == asked


def test_many_names_are_the_last_ones() -> None:
    names = [f"N{chr(97 + i)}me" for i in range(20)]
    text = query_text(said("so " + " ".join(names), "ok", "What did they all say to it?"))
    assert text == f"What did they all say to it? ({' '.join(names[-8:])})"


def test_the_reference_is_given_or_told_by_the_messages_or_now() -> None:
    turns = [Turn("user", "a", datetime(2020, 1, 1)), Turn("user", "b", datetime(2021, 1, 1)), Turn("assistant", "c")]
    assert reference("2019-05-01T10:00:00", turns) == datetime(2019, 5, 1, 10)
    assert reference(None, turns) == datetime(2021, 1, 1)
    for query in ("a", [Turn("user", "a")]):
        now = reference(None, query)
        assert abs((datetime.now().astimezone() - now).total_seconds()) < 60
