"""A GGUF file that this test writes gives the model, the tokenizer and the logits it should."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from msa_jax.checkpoint.gguf import GgufFile
from msa_jax.checkpoint.huggingface import (
    CheckpointError,
    load_params,
    read_model_config,
    read_params,
)
from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from tests.checkpoint.logits import our_logits, random_tokens, their_logits
from tests.checkpoint.tiny_gguf import CONFIG, TOKENS, write_gguf

MEMORY = MemoryConfig(router_layers=(1,), pooling_kernel_size=2, top_k_docs=2)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file, and a Hugging Face folder of the same model written without this package."""
    folder = tmp_path_factory.mktemp("gguf")
    tensors = write_gguf(folder / "tiny.gguf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_parameters_are_those_of_the_same_model_elsewhere(written):
    file = GgufFile(written / "tiny.gguf")
    config = file.model_config(memory=MEMORY, dtype="float32")
    assert config == read_model_config(written, memory=MEMORY, dtype="float32")
    expected = traverse_util.flatten_dict(load_params(written, config, KEY), sep="/")
    actual = traverse_util.flatten_dict(read_params(file, config, KEY), sep="/")
    assert actual.keys() == expected.keys()
    for path, leaf in actual.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    attention = read_params(file, config, KEY)["routed_1"]["attention"]
    np.testing.assert_array_equal(
        attention["router"]["q_proj"]["kernel"], attention["q_proj"]["kernel"]
    )


def test_logits_are_those_of_transformers(written):
    pytest.importorskip("torch", reason="parity with transformers needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    file = GgufFile(written / "tiny.gguf")
    config = file.model_config(memory=MEMORY, dtype="float32")
    tokens = random_tokens(config.vocab_size)
    expected = their_logits(transformers.AutoModelForCausalLM.from_pretrained(written), tokens)
    actual = our_logits(config, read_params(file, config, KEY), tokens)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("the user", ["the", "Ġ", "user"]),
        ("a the", ["a", "Ġthe"]),
        ("x12 123", ["x", "1", "2", "Ġ", "1", "2", "3"]),
        ("é", ["Ã", "©"]),
        ("<|im_start|>", ["<", "|", "i", "m", "_", "s", "t", "a", "r", "t", "|", ">"]),
        ("the\n\n  the", ["the", "Ċ", "Ċ", "Ġ", "Ġthe"]),
        ("", []),
    ],
)
def test_text_becomes_the_tokens_of_its_merges(written, text, pieces):
    tokenizer = Tokenizer(GgufFile(written / "tiny.gguf").tokenizer())
    ids = tokenizer.encode(text)
    assert [TOKENS[index] for index in ids] == pieces
    assert tokenizer.decode(ids) == text


def test_the_templates_have_their_special_tokens(written):
    tokenizer = Tokenizer(GgufFile(written / "tiny.gguf").tokenizer())
    assert tokenizer.vocab_size == len(TOKENS) and tokenizer.pad_id == 0
    assert tokenizer.token_id("<|object_ref_end|>") == TOKENS.index("<repo_name>")
    assert tokenizer.token_id("<End-of-Retrieve>") == TOKENS.index("<filename>")
    builder = PromptBuilder(TEMPLATES["plain"], tokenizer, MEMORY)
    assert len(builder.head) == MEMORY.head_len and len(builder.stop().tokens) == 1
    with pytest.raises(ConfigError, match="no special token '<filename>'"):
        tokenizer.token_id("<filename>")


def test_what_is_not_supported_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, pre="llama-bpe")
    with pytest.raises(ConfigError, match="kind gpt2/llama-bpe is not supported"):
        GgufFile(path).tokenizer()
    write_gguf(path, llama__rope__scaling__type="yarn")
    with pytest.raises(ConfigError, match="rope scaling 'yarn' is not supported"):
        GgufFile(path).model_config()


def test_files_that_are_no_model(tmp_path, written):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match=r"bad\.gguf cannot be read as GGUF"):
        GgufFile(path)
    path.write_bytes((written / "tiny.gguf").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"bad\.gguf cannot be read as GGUF"):
        GgufFile(path)
    with pytest.raises(CheckpointError, match=r"none\.gguf cannot be read as GGUF"):
        GgufFile(tmp_path / "none.gguf")
