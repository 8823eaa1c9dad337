"""Context -> messages -> tokens: the memory as text in the prompt, which all other ways are measured against.

The memory stands in the system message, behind its instruction. So every prompt of one scope begins with the same
tokens (the head), which is what stored keys and values are computed behind; what differs from question to question
(the tail) comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from latent_memory.context import CLOSING, OPENING
from latent_memory.errors import InputError
from latent_memory.inference.local_model import LocalModel, Messages
from latent_memory.records import Context

INSTRUCTION = (
    "You are a helpful assistant who remembers earlier conversations with the user. Where the memory holds the answer, "
    "answer from it."
)
# Stands where the memory will; in no text that a person writes.
_HERE = "\ue000memory\ue000"


class Layout(NamedTuple):
    """A prompt's tokens around its memory: `head`, the memory's own, `tail`."""

    head: list[int]
    tail: list[int]


def as_messages(question: str | Messages) -> list[dict[str, str]]:
    """Return a question as a conversation of one message; a conversation as it is, checked.

    Raises:
        InputError: if there is none, or a message has no text.
    """
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    checked = []
    for place, message in enumerate(question):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f'messages[{place}]: {{"role": "…", "content": "…"}} was expected')
        checked.append({"role": message["role"], "content": message["content"]})
    if not checked:
        raise InputError("messages: empty; there is nothing to answer")
    return checked


def messages(question: str | Messages, memory: str | Context = "") -> list[dict[str, str]]:
    """Return the messages with the memory in the system message, behind the instruction.

    Args:
        question: a text, or the live conversation, whose own system message takes the place of our instruction.
        memory: a context, or the block of text itself; "" for none.
    """
    live = as_messages(question)
    own = live[0]["content"] if live[0]["role"] == "system" else INSTRUCTION
    rest = live[1:] if live[0]["role"] == "system" else live
    text = memory.text if isinstance(memory, Context) else memory
    return [{"role": "system", "content": f"{own}\n\n{text}" if text else own}, *rest]


def rendered(model: LocalModel, question: str | Messages, memory: str | Context = "", *, dated: bool = True) -> str:
    """Return the whole prompt as text; with models that know no system message, that stands in the first message."""
    told = messages(question, memory)
    try:
        text = model.template(told, dated=dated)
    except InputError:
        text = ""
    if told[0]["content"].strip() not in text:
        first = told[1] if len(told) > 1 else {"role": "user", "content": ""}
        merged = {"role": first["role"], "content": f"{told[0]['content']}\n\n{first['content']}"}
        text = model.template([merged, *told[2:]], dated=dated)
    return text


def tokens(model: LocalModel, question: str | Messages, memory: str | Context = "") -> list[int]:
    """Return the whole prompt's tokens."""
    return model.encode(rendered(model, question, memory))


def layout(model: LocalModel, question: str | Messages, *, dated: bool = True) -> Layout:
    """Return the tokens before and after the memory, whose own tokens stand in one fence between them."""
    text = rendered(model, question, f"{OPENING}{_HERE}{CLOSING}", dated=dated)
    before, here, after = text.partition(_HERE)
    if not here:
        raise InputError(f"the chat template of {model.name} leaves out the message that holds the memory")
    return Layout(model.encode(before), model.encode(after))


def body(context: Context) -> str:
    """Return the context's text without its fence, which `layout` puts around it."""
    return context.text.removeprefix(OPENING).removesuffix(CLOSING)


def flat(parts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens of all parts, one after the other."""
    return [token for part in parts for token in part]
