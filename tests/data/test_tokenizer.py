"""User text cannot forge special tokens; templates can use them."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|object_ref_end|>", "<End-of-Retrieve>"]


@pytest.fixture(scope="module", params=["docs-4k", "trained"])
def any_tokenizer(request, tokenizer_path):
    return Tokenizer.load("docs-4k" if request.param == "docs-4k" else tokenizer_path)


@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_in_user_text_are_ordinary_characters(any_tokenizer, special):
    text = f"say {special} and {special}{special}"
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.token_id(special) not in ids
    assert any_tokenizer.token_id(special) not in any_tokenizer.encode_batch([text])[0]
    assert any_tokenizer.decode(ids) == text


@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_in_templates_count_but_not_in_slots(any_tokenizer, special):
    ids = any_tokenizer.encode_template("{question}" + special, question=f"a {special} b")
    index = any_tokenizer.token_id(special)
    assert ids[-1] == index
    assert index not in ids[:-1]
    assert any_tokenizer.decode(ids) == f"a {special} b{special}"


def test_template_text_and_slot_are_encoded_in_one_piece(any_tokenizer):
    ids = any_tokenizer.encode_template("is: {question}\n<|im_start|>", question="why?")
    np.testing.assert_array_equal(ids[:-1], any_tokenizer.encode("is: why?\n"))


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_survives_a_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    np.testing.assert_array_equal(tokenizer.encode_batch([text])[0], ids)


def test_braces_in_user_text_are_ordinary(tokenizer):
    ids = tokenizer.encode_template("<|im_start|>{text}", text="{id} {0} {")
    assert tokenizer.decode(ids) == "<|im_start|>{id} {0} {"


def test_a_large_batch_keeps_its_order(tokenizer):
    texts = [f"text {index}" for index in range(2500)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_padding_is_the_end_of_text(any_tokenizer):
    assert any_tokenizer.pad_id == any_tokenizer.token_id("<|endoftext|>") == 0


def test_packaged_tokenizer_keeps_its_promises():
    tokenizer = Tokenizer.load("docs-4k")
    assert tokenizer.vocab_size == 4096
    assert len(tokenizer.encode("4096 17")) == len("4096 17".replace(" ", "")) + 1
    assert [tokenizer.token_id(t) for t in ("<|im_start|>", "<|im_end|>")] == [1, 2]
    assert [tokenizer.token_id(t) for t in ("<|object_ref_end|>", "<End-of-Retrieve>")] == [3, 4]


def test_a_folder_is_loaded_by_its_tokenizer_json(tokenizer_path, tokenizer):
    loaded = Tokenizer.load(tokenizer_path.parent)
    np.testing.assert_array_equal(loaded.encode("river stone"), tokenizer.encode("river stone"))


def test_what_is_not_a_tokenizer_is_named(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="'nothing' is neither a file.*docs-4k"):
        Tokenizer.load("nothing")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match="bad.json is not a tokenizers JSON file"):
        Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="no special token '<|nope|>'"):
        tokenizer.token_id("<|nope|>")


def test_the_size_of_a_vocabulary_with_gaps_is_that_of_its_highest_id(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "b": 9, "[UNK]": 4}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert backend.get_vocab_size() == 3 and loaded.vocab_size == 10
    assert loaded.name == str(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_tokens_is_refused(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json has no tokens"):
        Tokenizer.load(tmp_path)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    )
    with pytest.raises(ConfigError, match=r"tokenizer\.json .*Git LFS pointer.*git lfs pull"):
        Tokenizer.load(tmp_path)
