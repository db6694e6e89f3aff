"""The sentence encoder agrees with `transformers`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from msa_jax.config import ConfigError
from msa_jax.evaluation.minilm import SentenceEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "##d", "otter", "mill", "old", "the"]
TEXTS = ["the old mill", "otter", "the otter " * 30, "a b cd c", "unheard of"]


def torch_and_transformers():
    """These two; the tests skip without them."""
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of two layers with random weights, as sentence-transformers keeps one."""
    torch, transformers = torch_and_transformers()
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=48,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    return folder


def expected(folder) -> np.ndarray:
    """Mean-pooled, normalised states of every text by itself."""
    torch, transformers = torch_and_transformers()
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            mean = model(**inputs).last_hidden_state[0].mean(dim=0)
            rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def test_embeddings_are_those_of_transformers(folder):
    encoder = SentenceEncoder(folder, batch_tokens=80)
    tokens = encoder.tokenize(TEXTS)
    assert max(map(len, tokens)) == 40, "cut as the folder says"
    seen = []
    ours = np.asarray(encoder.encode(tokens, seen.append), np.float32)
    np.testing.assert_allclose(ours, expected(folder), atol=1e-3)
    assert sum(seen) == len(TEXTS)
    in_16_bits = SentenceEncoder(folder, "bfloat16")
    ours = np.asarray(in_16_bits.encode(tokens), np.float32)
    np.testing.assert_allclose(ours, expected(folder), atol=5e-2)


def test_a_folder_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        SentenceEncoder(tmp_path)
