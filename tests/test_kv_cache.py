"""Memory as keys and values: exact as a prefix, joined from blocks, stored, refused, and forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_memory import Conversation, LatentMemory, Turn, block_files
from latent_memory.context import OPENING
from latent_memory.errors import DerivedError, InputError, ModelError, StoreError, StoreFullError
from latent_memory.inference import prompt
from latent_memory.inference.kv_cache import Background, BlockCache, PrefixCache
from latent_memory.inference.local_model import LocalModel
from latent_memory.inference.rotary import Rotary, cache_of, stacked
from latent_memory.inference.stretches import passages_of, stretches_of
from latent_memory.records import Context
from tiny_model import real_model, tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTION = "What did we plant in the garden?"
TALKS = [
    Conversation(
        conversation_id=f"talk-{number}",
        title=f"Garden day {number}",
        timestamp=f"2024-03-{number + 1:02}T10:00:00Z",  # type: ignore[arg-type]
        turns=[
            Turn("user", f"We planted {what} in the garden today, number {number}.", name="Ann"),
            Turn("assistant", f"How nice! {what.title()} like the sun in the afternoon."),
            Turn("user", "And the dog slept under the tree while we worked all the day long.", name="Ann"),
            Turn("assistant", "Then everybody had a good day, I should think."),
        ],
    )
    for number, what in enumerate(["tomatoes", "roses", "beans", "onions", "tulips"])
]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture
def talks(memory: LatentMemory) -> LatentMemory:
    memory.add(TALKS)
    return memory


@pytest.fixture
def context(talks: LatentMemory, model: LocalModel) -> Context:
    made = talks.context(QUESTION, 600, tokenizer=model.count_tokens)
    assert len(made.passages) >= 4
    return made


def blocks_of(memory: LatentMemory, model: LocalModel, **options: Any) -> BlockCache:
    return BlockCache(model, memory.block_directory, memory.get, **{"size": 120, "bits": 32} | options)


def files(memory: LatentMemory) -> list[Path]:
    return sorted(memory.block_directory.rglob("*.safetensors"))


def gaps(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


# -- the exact prefix -------------------------------------------------------------------------------------


def test_a_stored_prefix_gives_the_logits_of_reading_it_all(
    talks: LatentMemory, model: LocalModel, context: Context
) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    layout = prompt.layout(model, QUESTION)
    whole = model.prefill(layout.head + model.encode(prompt.body(context)) + layout.tail)
    first, second = prefixes.read(context, QUESTION), prefixes.read(context, QUESTION)
    assert (first.read, second.read) == (whole.read, len(layout.tail))
    assert first.length == second.length == whole.length
    assert gaps(second.logits, whole.logits) <= 1e-4
    assert list(model.tokens(second, most=20)) == list(model.tokens(whole, most=20))


def test_a_stored_prefix_never_grows(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    prefixes.read(context, QUESTION)
    (path,) = files(talks)
    before = path.read_bytes()
    answers = [list(model.tokens(prefixes.read(context, QUESTION), most=30)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert path.read_bytes() == before


def test_a_prefix_ends_where_the_context_window_does(talks: LatentMemory, context: Context) -> None:
    small = tiny_model(window=64)
    with pytest.raises(InputError, match="reads 64 at most"):
        PrefixCache(small, talks.block_directory).read(context, QUESTION)


# -- free blocks ------------------------------------------------------------------------------------------


def test_keys_are_moved_exactly(model: LocalModel) -> None:
    tokens = list(range(5, 40))
    rotary = Rotary(model)
    head = model.prefill(list(range(50, 60)))
    keys, values = stacked(model.prefill(tokens, cache_of(*stacked(head.cache, model)), head.length).cache, model)
    by = torch.full((45,), 1000)
    moved = rotary.turn(keys, by)
    ids = torch.tensor([list(range(50, 60)) + tokens])
    cache = transformers.DynamicCache()
    with torch.inference_mode():
        model.run({"input_ids": ids}, cache, torch.arange(1000, 1045)[None])
    true_keys, true_values = stacked(cache, model)
    assert gaps(moved, true_keys) < 1e-4
    assert gaps(values, true_values) < 1e-4
    assert gaps(rotary.turn(moved, -by), keys) < 1e-4


def test_one_block_behind_its_head_is_exact(model: LocalModel, memory: LatentMemory) -> None:
    memory.add(TALKS[0])
    blocks = blocks_of(memory, model, size=1000)
    stored = memory.get("talk-0")
    assert stored is not None
    passages = tuple(passages_of(stored, "default"))
    context = Context("x", passages, 0, 0, relevance=(1.0,) * len(passages))
    layout = prompt.layout(model, QUESTION)
    joined = blocks.join(context, layout.head)
    whole = model.prefill(joined.tokens + layout.tail)
    made = blocks.read(context, QUESTION)
    assert gaps(made.logits, whole.logits) <= 1e-4
    assert made.length == whole.length


def test_recomputing_everything_is_exact(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    model = three_layers()
    blocks = blocks_of(talks, model)
    layout = prompt.layout(model, QUESTION)
    whole = model.prefill(blocks.join(context, layout.head).tokens + layout.tail)
    apart = []
    for share in (0.0, 0.5, 1.0):
        blocks.recompute = share
        made = blocks.read(context, QUESTION)
        assert made.length == whole.length
        apart.append(gaps(made.logits, whole.logits))
    assert apart[2] <= 1e-4 < apart[0]
    # What follows sees the same positions, however the cache is ordered.
    assert list(model.tokens(made, most=20)) == list(model.tokens(whole, most=20))


def three_layers() -> LocalModel:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    net = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    return LocalModel(net, tiny_model().tokenizer, "three layers")


def test_blocks_hold_the_words_of_the_context(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    head = prompt.layout(model, QUESTION).head
    said = model.tokenizer.decode(blocks.join(context, head).tokens[len(head) :])
    for passage in context.passages:
        assert passage.text in said
    assert OPENING in model.tokenizer.decode(head)
    blocks.whole = True
    assert len(blocks.join(context, head).tokens) >= len(head) + len(model.encode(said))


def test_the_most_relevant_stretch_stands_last(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    for best in {passage.conversation_id for passage in context.passages}:
        relevance = tuple(2.0 if p.conversation_id == best and not p.turn else 1.0 for p in context.passages)
        assert blocks._picked(replace(context, relevance=relevance))[-1][0].conversation_id == best
    blocks.nearest = False
    assert blocks._picked(context)[0][0].conversation_id == context.passages[0].conversation_id


def test_only_the_question_is_read_again(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    missing = blocks.missing(context)
    assert missing > 0
    first = blocks.read(context, QUESTION)
    assert blocks.missing(context) == 0
    fresh = blocks_of(talks, model)
    fresh.join(context, prompt.layout(model, QUESTION).head)
    assert fresh.read(context, QUESTION).read == len(prompt.layout(model, QUESTION).tail)
    assert first.read > missing


@pytest.mark.parametrize(("bits", "most"), [(32, 1e-5), (16, 0.01), (8, 0.1), (4, 1.0)])
def test_smaller_numbers_cost_little(
    talks: LatentMemory, model: LocalModel, context: Context, bits: int, most: float
) -> None:
    full = blocks_of(talks, model).read(context, QUESTION)
    sizes = sum(path.stat().st_size for path in files(talks))
    shutil.rmtree(talks.block_directory)
    small = blocks_of(talks, model, bits=bits)
    first, again = small.read(context, QUESTION), small.read(context, QUESTION)
    assert gaps(first.logits, full.logits) <= most
    # What was just computed is no other than what is read back.
    assert gaps(first.logits, again.logits) == 0
    if bits < 32:
        assert sum(path.stat().st_size for path in files(talks)) < sizes


def test_a_conversation_that_grows_keeps_its_blocks(talks: LatentMemory, model: LocalModel) -> None:
    blocks = blocks_of(talks, model, size=60)
    assert blocks.prepare(["talk-0"]) > 0
    before = files(talks)
    grown = [*TALKS[0].turns, Turn("user", "And tomorrow we plant more of the same, if the weather is good.")]
    talks.add(Conversation("talk-0", grown))
    assert 0 < blocks.prepare(["talk-0"]) < 120
    after = files(talks)
    assert len(set(before) & set(after)) >= len(before) - 1
    assert blocks.prepare(["talk-0"]) == 0


def test_blocks_of_changed_turns_are_removed(talks: LatentMemory, model: LocalModel) -> None:
    blocks = blocks_of(talks, model, size=60)
    blocks.prepare(["talk-0"])
    before = files(talks)
    talks.add(Conversation("talk-0", [Turn("user", "Something quite different.", name="Ann"), *TALKS[0].turns[1:]]))
    blocks.prepare(["talk-0"])
    after = files(talks)
    assert len(after) == len(before)
    assert len(set(before) - set(after)) == 1


def test_the_least_recently_used_block_is_evicted(talks: LatentMemory, model: LocalModel) -> None:
    blocks = blocks_of(talks, model, size=1000)
    blocks.prepare(["talk-0", "talk-1"])
    total = sum(path.stat().st_size for path in files(talks))
    old = block_files.place(talks.block_directory, "default", "talk-0")
    stored = talks.get("talk-2")
    assert stored is not None
    small = blocks_of(talks, model, size=1000, limit=total)
    passages = tuple(passages_of(stored, "default"))
    small.read(Context("x", passages, 0, 0, relevance=(1.0,) * len(passages)), QUESTION)
    assert sum(path.stat().st_size for path in files(talks)) <= total
    assert not list(old.glob("*"))
    # What is not asked for makes nothing give way but other models' blocks.
    before = files(talks)
    assert small.prepare(["talk-3"]) > 0 or small.full
    assert small.prepare(["talk-0", "talk-4"]) == 0
    assert small.full
    assert set(before) <= set(files(talks))
    other = BlockCache(tiny_model(seed=1), talks.block_directory, talks.get, bits=32, size=1000, limit=total)
    assert other.prepare(["talk-0"]) > 0
    assert not set(before) <= set(files(talks))


def test_an_adapted_model_computes_no_blocks(talks: LatentMemory, context: Context) -> None:
    adapted = tiny_model()
    blocks, prefixes = blocks_of(talks, adapted), PrefixCache(adapted, talks.block_directory)
    adapted.adapted = True
    for use in (
        lambda: blocks.read(context, QUESTION),
        lambda: blocks.prepare(["talk-0"]),
        lambda: prefixes.read(context, QUESTION),
    ):
        with pytest.raises(InputError, match="an adapter"):
            use()
    assert files(talks) == []


def test_a_template_that_tells_the_day_keeps_its_blocks(
    talks: LatentMemory, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = tiny_model()
    dated.tokenizer.chat_template = "{{ strftime_now('%d %B %Y, %H:%M:%S.%f') }}" + dated.tokenizer.chat_template
    assert dated.template(prompt.messages("?")) != dated.template(prompt.messages("?"))
    blocks_of(talks, dated).read(context, QUESTION)
    assert blocks_of(talks, dated).missing(context) == 0


def test_without_memory_it_is_the_plain_prompt(talks: LatentMemory, model: LocalModel) -> None:
    nothing = Context("", (), 0, 0)
    plain = model.prefill(prompt.tokens(model, QUESTION))
    for way in (blocks_of(talks, model), PrefixCache(model, talks.block_directory)):
        assert gaps(way.read(nothing, QUESTION).logits, plain.logits) == 0


def test_a_full_disk_ends_no_answer(
    talks: LatentMemory, model: LocalModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = blocks_of(talks, model).read(context, QUESTION)
    shutil.rmtree(talks.block_directory)

    def full(*_: object) -> int:
        raise StoreFullError("full")

    monkeypatch.setattr("latent_memory.inference.block_store.save", full)
    assert gaps(blocks_of(talks, model).read(context, QUESTION).logits, expected.logits) < 1e-5
    PrefixCache(model, talks.block_directory).read(context, QUESTION)
    with pytest.raises(StoreFullError):
        blocks_of(talks, model).prepare(["talk-0"])


def test_a_damaged_prefix_is_read_again(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    good = prefixes.read(context, QUESTION)
    (path,) = files(talks)
    path.write_bytes(path.read_bytes()[:-5])
    assert gaps(prefixes.read(context, QUESTION).logits, good.logits) == 0
    assert prefixes.read(context, QUESTION).read < good.read


def test_a_prefix_of_what_is_forgotten_meanwhile_is_not_kept(
    talks: LatentMemory, model: LocalModel, context: Context
) -> None:
    PrefixCache(model, talks.block_directory, conversation=lambda _: None).read(context, QUESTION)
    assert files(talks) == []
    PrefixCache(model, talks.block_directory, conversation=talks.get).read(context, QUESTION)
    assert len(files(talks)) == 1


def test_what_cannot_be_deleted_is_told(
    talks: LatentMemory, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks_of(talks, model).prepare(["talk-0"])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(StoreError, match="forget the same again"):
            talks.forget("talk-0")
    assert talks.get("talk-0") is None
    talks.forget("talk-0")
    assert files(talks) == []
    # Also of a scope that is gone.
    stray = block_files.place(talks.block_directory, "gone", "x")
    stray.mkdir(parents=True)
    talks.forget(scope="gone", everything=True)
    assert not stray.exists()


def test_blocks_are_prepared_in_the_background(talks: LatentMemory, model: LocalModel) -> None:
    blocks = blocks_of(talks, model)
    ids = [each.conversation_id or "" for each in TALKS]
    background = Background(blocks, ids)
    with background.paused():
        pass
    background._thread.join(timeout=60)
    background.close()
    assert background.error is None
    assert blocks.prepare(ids) == 0
    assert len({path.parent for path in files(talks)}) == len(ids)


def test_a_background_that_is_paused_can_be_ended(talks: LatentMemory, model: LocalModel) -> None:
    blocks = blocks_of(talks, model, size=1)
    background = Background(blocks, ["talk-0"] * 3)
    with background.paused():
        background.close()
    assert not background._thread.is_alive()


# -- forgetting -------------------------------------------------------------------------------------------


def test_blocks_die_with_what_forget_removes(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    blocks.prepare([each.conversation_id or "" for each in TALKS])
    PrefixCache(model, talks.block_directory).read(context, QUESTION)
    talks.forget("talk-1")
    left = {path.parent.name for path in files(talks)}
    assert left == {block_files.digest(f"talk-{number}") for number in (0, 2, 3, 4)}
    talks.forget(everything=True)
    assert files(talks) == []


def test_what_was_forgotten_is_not_answered_from(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    blocks.read(context, QUESTION)
    talks.forget([p.conversation_id for p in context.passages])
    with pytest.raises(DerivedError, match="Recall again"):
        blocks.read(context, QUESTION)


def test_a_block_of_what_is_forgotten_meanwhile_is_not_kept(talks: LatentMemory, model: LocalModel) -> None:
    answers = iter([talks.get("talk-0"), None])
    blocks = BlockCache(model, talks.block_directory, lambda _: next(answers, None), size=1000)
    blocks.prepare(["talk-0"])
    assert files(talks) == []


def test_scopes_share_no_blocks(talks: LatentMemory, model: LocalModel) -> None:
    talks.add(TALKS[0], "other")
    blocks_of(talks, model).prepare(["talk-0"])
    BlockCache(model, talks.block_directory, lambda each: talks.get(each, scope="other"), scope="other").prepare(
        ["talk-0"]
    )
    talks.forget("talk-0", scope="other")
    assert {path.parent.parent.name for path in files(talks)} == {block_files.digest("default")}


# -- bad input --------------------------------------------------------------------------------------------


def test_another_models_blocks_are_refused(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    tokens = prompt.layout(model, QUESTION).head
    prefixes.keep(tokens)
    other = PrefixCache(tiny_model(seed=1), talks.block_directory)
    assert other.load(tokens) is None
    other.path(tokens).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(prefixes.path(tokens), other.path(tokens))
    with pytest.raises(DerivedError, match="another model"):
        other.load(tokens)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_block_cut_short_is_refused(talks: LatentMemory, model: LocalModel, cut: int) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    tokens = prompt.layout(model, QUESTION).head
    prefixes.keep(tokens)
    path = prefixes.path(tokens)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DerivedError, match="damaged"):
        prefixes.load(tokens)


def test_a_flipped_byte_is_found_wherever_it_is(talks: LatentMemory, model: LocalModel) -> None:
    prefixes = PrefixCache(model, talks.block_directory)
    tokens = prompt.layout(model, QUESTION).head[:6]
    prefixes.keep(tokens)
    path = prefixes.path(tokens)
    whole = path.read_bytes()
    for place in [*range(0, 700, 41), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            block = prefixes.load(tokens)
        except DerivedError:
            continue
        # Of the header some bytes mean nothing, such as the white space that fills it up.
        path.write_bytes(whole)
        kept = prefixes.load(tokens)
        assert block is not None
        assert kept is not None
        assert gaps(block.keys, kept.keys) == gaps(block.values, kept.values) == 0


def test_a_damaged_block_is_computed_again(talks: LatentMemory, model: LocalModel, context: Context) -> None:
    blocks = blocks_of(talks, model)
    good = blocks.read(context, QUESTION)
    for path in files(talks):
        path.write_bytes(path.read_bytes()[:-9])
    again = blocks.read(context, QUESTION)
    assert gaps(good.logits, again.logits) == 0
    assert blocks.damaged > 0
    assert blocks.read(context, QUESTION).read == len(prompt.layout(model, QUESTION).tail)


def other_model(kind: str) -> LocalModel:
    sizes: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    few = {"num_key_value_heads": 2}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=400, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
        ),
        "mistral": lambda: transformers.MistralConfig(**sizes, **few, sliding_window=16),
        "mistral without window": lambda: transformers.MistralConfig(**sizes, **few, sliding_window=None),
        "qwen2": lambda: transformers.Qwen2Config(**sizes, **few),
        "qwen3": lambda: transformers.Qwen3Config(**sizes, **few, head_dim=8),
        "gemma": lambda: transformers.GemmaConfig(**sizes, **few, head_dim=8, pad_token_id=1),
        "gemma2": lambda: transformers.Gemma2Config(**sizes, **few, head_dim=8, pad_token_id=1),
        "phi": lambda: transformers.PhiConfig(**sizes, partial_rotary_factor=0.5),
        "dynamic": lambda: transformers.LlamaConfig(
            **sizes, **few, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        ),
        "llama3": lambda: transformers.LlamaConfig(
            **sizes,
            **few,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "cohere": lambda: transformers.CohereConfig(**sizes, **few, pad_token_id=1),
    }
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(configs[kind]())
    return LocalModel(net.eval().requires_grad_(False), tiny_model().tokenizer, kind)


@pytest.mark.parametrize("kind", ["mistral without window", "qwen2", "qwen3", "gemma", "phi", "llama3"])
def test_families_with_rotary_positions_can(talks: LatentMemory, kind: str, context: Context) -> None:
    other = other_model(kind)
    layout = prompt.layout(other, QUESTION)
    blocks = BlockCache(other, talks.block_directory, talks.get, bits=32, size=1000)
    one = Context("x", context.passages[:1], 0, 0, relevance=(1.0,))
    whole = other.prefill(blocks.join(one, layout.head).tokens + layout.tail)
    assert blocks.read(one, QUESTION).length == whole.length
    prefixes = PrefixCache(other, talks.block_directory)
    prefixes.read(context, QUESTION)
    tokens = layout.head + other.encode(prompt.body(context))
    assert gaps(prefixes.read(context, QUESTION).logits, other.prefill(tokens + layout.tail).logits) <= 1e-4


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gpt2", "no rotary positions"),
        ("mistral", "sliding windows"),
        ("gemma2", "sliding windows"),
        ("dynamic", "change with the prompt's length"),
        ("cohere", "do not move"),
    ],
)
def test_other_models_are_refused_with_the_way_that_works(talks: LatentMemory, kind: str, why: str) -> None:
    other = other_model(kind)
    with pytest.raises(ModelError, match=rf"{why}.*mode prompt"):
        BlockCache(other, talks.block_directory, talks.get)
    # And that does work.
    assert list(other.tokens(other.prefill(prompt.tokens(other, QUESTION, "a memory")), most=3)) is not None


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"recompute": 1.5}, {"recompute": -0.1}])
def test_wrong_settings_are_refused(talks: LatentMemory, model: LocalModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        blocks_of(talks, model, **wrong)


def test_an_unknown_layout_of_the_cache_is_refused(model: LocalModel) -> None:
    class Strange:
        layers = ()

    with pytest.raises(ModelError, match="mode prompt"):
        stacked(Strange(), model)


def test_stretches_are_cut_by_tokens(talks: LatentMemory, model: LocalModel) -> None:
    stored = talks.get("talk-0")
    assert stored is not None
    small = stretches_of(model, stored, "default", 60)
    (large,) = stretches_of(model, stored, "default", 10_000)
    assert len(small) > 1
    assert [p for s in small for p in s.parts if p.place is not None] == [p for p in large.parts if p.place is not None]
    assert all(s.parts[0].place is None for s in small)


# -- the real model ---------------------------------------------------------------------------------------

ANOTHER_PROCESS = """
import sys
from latent_memory import LatentMemory
from latent_memory.inference.kv_cache import PrefixCache
from latent_memory.inference.local_model import LocalModel
model = LocalModel.load("smollm2", device="cpu")
with LatentMemory.open(sys.argv[1], embedder="hashing") as memory:
    context = memory.context(sys.argv[2], 400, tokenizer=model.count_tokens)
    made = PrefixCache(model, memory.block_directory).read(context, sys.argv[2])
    print(made.read, list(model.tokens(made, most=12)))
"""


@pytest.fixture(scope="module")
def smollm2() -> LocalModel:
    return real_model()


def test_the_real_model_is_exact_across_processes(talks: LatentMemory, smollm2: LocalModel) -> None:
    context = talks.context(QUESTION, 400, tokenizer=smollm2.count_tokens)
    layout = prompt.layout(smollm2, QUESTION)
    whole = smollm2.prefill(layout.head + smollm2.encode(prompt.body(context)) + layout.tail)
    prefixes = PrefixCache(smollm2, talks.block_directory)
    prefixes.read(context, QUESTION)
    assert gaps(prefixes.read(context, QUESTION).logits, whole.logits) <= 1e-4
    greedy = list(smollm2.tokens(whole, most=12))
    place = talks.block_directory.parent
    talks.close()
    arguments = [sys.executable, "-c", ANOTHER_PROCESS, str(place), QUESTION]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=200)
    assert told.stdout.strip() == f"{len(layout.tail)} {greedy}"


def test_the_real_models_blocks_answer_like_text(talks: LatentMemory, smollm2: LocalModel) -> None:
    context = talks.context("What did Ann plant on 3 March 2024?", 300, tokenizer=smollm2.count_tokens)
    blocks = BlockCache(smollm2, talks.block_directory, talks.get)
    answer = smollm2.encode("beans")
    question = "What did Ann plant on 3 March 2024? Answer with one word."
    none = smollm2.nll(smollm2.prefill(prompt.tokens(smollm2, question)), answer)
    text = smollm2.nll(smollm2.prefill(prompt.tokens(smollm2, question, context)), answer)
    kv = smollm2.nll(blocks.read(context, question), answer)
    assert none - kv > 0.7 * (none - text) > 0
