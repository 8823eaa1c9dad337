"""What `latent-memory demo` shows: the example conversations in a memory, a few questions, and a block for a prompt."""

from __future__ import annotations

import shlex
from pathlib import Path

from latent_memory.importers import jsonl
from latent_memory.memory import LatentMemory
from latent_memory.output import handled, progress, say, say_hits

_QUESTIONS = (
    "what did I ask about feedback loops?",
    "How wet should my bread dough be with the weaker flour up here in the north?",
    "What was granny's warning about the temperature of the milk?",
    "Why does a transformer scale down the scores before normalising them?",
    "What made the lab's API client lock me out every hour?",
)


def run(place: Path, program: str, *, kept: bool) -> None:
    """Add the examples to a memory, ask it, and print what it finds.

    Args:
        place: where the memory is made.
        program: what to call next.
        kept: the memory stays; what to try next is tried with it.
    """
    examples = _examples()
    conversations = list(jsonl.read(examples))
    turns = sum(len(conversation.turns) for conversation in conversations)
    with LatentMemory.open(place) as memory:
        say(f"Adding {len(conversations)} example conversations ({turns} turns) to {place}\n")
        with progress("adding", turns) as at:
            memory.add(conversations, progress=lambda report: at(handled(report)))
        for question in _QUESTIONS:
            say(f"? {question}")
            say_hits(memory.recall(question, k=3))
            say("")
        question = _QUESTIONS[0]
        say(f"What a prompt would get for {question!r}, in at most 300 tokens:\n")
        say(memory.context(question, budget=300).text)
    store = f" --store {shlex.quote(str(place))}" if kept else ""
    first = "" if kept else f"\n  {program} add {shlex.quote(str(examples))}"
    say(
        f"""
Try next:{first}
  {program} recall "what went wrong in the server outage?"{store}
  {program} context "plan my next race" --budget 512{store}
  {program} show 0328711{store}"""
    )


def _examples() -> Path:
    # In an installed package beside this file, in a checkout beside src/.
    here = Path(__file__).parent
    places = [base / "examples" / "conversations.jsonl" for base in (here, here.parent.parent)]
    return next((place for place in places if place.is_file()), places[0])
