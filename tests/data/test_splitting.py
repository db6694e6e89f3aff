"""Parts of long texts: nothing lost, nothing too long, cut where a reader would cut."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data.splitting import LongText, split_texts
from tests.data.conftest import WORDS

# Words, ends of sentences and paragraphs, other scripts, and what is no word at all.
PIECES = [*WORDS[:5], *WORDS[:5], ".", "!", "? ", " ", "\n", "\n\n", "\r\n \n", "\t", '."', "…"]
PIECES += [
    "a" * 70,
    "日本語。",
    "はい」",
    "é\u0301",
    "🙂👩‍👩‍👧",
    "12 345",
    "\u2028",
    "<|im_end|>",
    "\x00",
]


def texts(max_size=120):
    return st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=max_size).map(
        "".join
    )


def split_text(text, max_tokens, tokenizer, *write):
    (parts,) = split_texts([LongText(text, *write)], max_tokens, tokenizer)
    return parts


def assert_sound(text, parts, tokenizer, max_tokens, write=lambda text, is_first: text):
    """In order, of all characters but white space, each encoded as `write` says, none too long."""
    kept, end = [], 0
    for index, part in enumerate(parts):
        own = text[part.start : part.stop]
        assert own and own == own.strip() and not text[end : part.start].strip()
        assert part.tokens.tolist() == tokenizer.encode(write(own, index == 0)).tolist()
        assert len(part.tokens) <= max_tokens
        kept.append(own)
        end = part.stop
    assert not text[end:].strip()


@settings(deadline=None)
@given(text=texts(), max_tokens=st.integers(12, 100))
def test_parts_are_the_whole_text_and_fit(tokenizer, text, max_tokens):
    assert_sound(text, split_text(text, max_tokens, tokenizer), tokenizer, max_tokens)


@settings(deadline=None, max_examples=50)
@given(many=st.lists(texts(60), max_size=4), max_tokens=st.integers(12, 40))
def test_texts_are_cut_together_as_each_alone(tokenizer, many, max_tokens):
    """Some need more rounds of counting than others."""
    together = split_texts(map(LongText, many), max_tokens, tokenizer)
    alone = [split_text(text, max_tokens, tokenizer) for text in many]
    spans = [[[part[:2] for part in parts] for parts in cut] for cut in (together, alone)]
    assert spans[0] == spans[1]


@settings(deadline=None, max_examples=50)
@given(text=texts(), max_tokens=st.integers(30, 60))
def test_what_is_written_around_a_part_counts(tokenizer, text, max_tokens):
    def write(text, is_first):
        return ("Title of this\n" if is_first else "") + f" {text}!?"

    parts = split_text(text, max_tokens, tokenizer, write)
    assert_sound(text, parts, tokenizer, max_tokens, write)


@pytest.mark.parametrize("text", ["", " \n\t\u3000"])
def test_white_space_has_no_parts(tokenizer, text):
    assert split_text(text, 8, tokenizer) == []


def test_a_text_that_fits_is_one_part(tokenizer):
    text = "  amber river.\n\nviolet cloud. "
    (part,) = split_text(text, 100, tokenizer)
    assert text[part.start : part.stop] == text.strip()


def pieces_of(text, max_tokens, tokenizer):
    return [text[part.start : part.stop] for part in split_text(text, max_tokens, tokenizer)]


SENTENCE = " ".join(WORDS[:5]) + "."


@pytest.mark.parametrize(
    ("joint", "within", "per_part"),
    [
        ("\n\n", " ", 3),
        ("\r\n\r\n", "\n", 3),
        ("\n \t\n", ' "', 3),
        (" ", " ", 5),
        ("\n", "\n", 5),
        ('" ', ") ", 5),
    ],
)
def test_parts_end_at_the_best_end_in_their_second_half(tokenizer, joint, within, per_part):
    """Paragraphs of three sentences, and room for five: that of a paragraph is the better end."""
    text = joint.join([within.join([SENTENCE] * 3)] * 4)
    room = len(tokenizer.encode(text)) * 13 // 30
    parts = pieces_of(text, room, tokenizer)
    assert [part.count(".") for part in parts] == ([3] * 4 if per_part == 3 else [5, 5, 2])
    assert all(re.search(r"[.\")]$", part) for part in parts)


def test_without_sentences_parts_are_whole_words(tokenizer):
    text = " ".join(WORDS * 20)
    # With a space before it, a word has the tokens that it has within the text.
    parts = split_text(text, 24, tokenizer, lambda text, is_first: f" {text}")
    assert " ".join(text[part.start : part.stop] for part in parts) == text
    assert min(len(part.tokens) for part in parts[:-1]) >= 12


def test_without_words_parts_are_full(tokenizer):
    parts = split_text("é" * 1000, 40, tokenizer)
    assert all(len(part.tokens) >= 20 for part in parts[:-1])


def test_other_scripts_end_sentences_without_spaces(tokenizer):
    text = "一二三四。五六七八！九十百千？" * 3
    parts = pieces_of(text, 20, tokenizer)
    assert len(parts) > 3 and all(part[-1] in "。！？" for part in parts)


def test_room_for_no_character_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"one character has 4 tokens .* at most 3 are allowed"):
        split_text("river 🙂 stone", 3, tokenizer)


@pytest.mark.parametrize("unit", ["a", " b", "\n\n", "x\n", ". ", '."', "。"], ids=repr)
def test_monotonous_texts_take_linear_time(tokenizer, unit):
    """No unit is quadratic for the patterns, nor so frequent that there are too many cuts."""
    started = time.perf_counter()
    text = unit * (300_000 // len(unit))
    parts = split_text(text, 500, tokenizer)
    assert time.perf_counter() - started < 20
    assert sum(part.stop - part.start for part in parts) >= len("".join(text.split()))


@pytest.mark.slow
def test_fifty_megabytes(tokenizer):
    """Words, sentences and paragraphs of a book, and one word of ten million letters."""
    paragraph = " ".join([SENTENCE] * 9) + "\n\n"
    text = paragraph * (40_000_000 // len(paragraph)) + "z" * 10_000_000
    parts = split_text(text, 500, tokenizer)
    assert all(0 < len(part.tokens) <= 500 for part in parts)
    assert parts[0].start == 0 and parts[-1].stop == len(text)
    assert all(not text[a.stop : b.start].strip() for a, b in zip(parts, parts[1:], strict=False))
