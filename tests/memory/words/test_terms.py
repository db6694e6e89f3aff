"""Words of texts in any script."""

import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from msa_jax.memory.words.terms import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lincoln's dogs ran by 2 cities.", ["lincoln", "dog", "ran", "by", "2", "city"]),
        ("glass virus this is bus as", ["glass", "virus", "this", "is", "bus", "as"]),
        ("Don’t, L'homme", ["don", "t", "l", "homme"]),
        ("a well-known writer", ["a", "well", "known", "writer"]),
        ("order AB-1203", ["order", "ab", "1203", "ab-1203"]),
        ("v1.2 in a/b.py", ["v1", "2", "in", "a", "b", "py", "v1.2", "a/b.py"]),
        ("max_size of a@b.org", ["max", "size", "of", "a", "b", "org", "max_size", "a@b.org"]),
        ("C++, C# and C", ["c", "c", "and", "c", "c++", "c#"]),
        ("1,250,000 or 3.14", ["1250000", "or", "3", "14", "3.14"]),
        (
            "STRASSE straße İstanbul Ｆｕｌｌ ﬁne",
            ["strasse", "strasse", "istanbul", "full", "fine"],
        ),
        ("Beyoncé Ёлка Άρης", ["beyonce", "елка", "αρησ"]),
        ("هَلْ كَتَبَ أحمد", ["هل", "كتب", "احمد"]),
        ("שָׁלוֹם עולם", ["שלום", "עולם"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京へ", ["東", "京", "へ", "東京", "京へ"]),
        ("2024年", ["2024", "年"]),
        ("한국어", ["한", "국", "어", "한국", "국어"]),
        ("ง่าย", ["ง่", "า", "ย", "ง่า", "าย"]),
        ("\u200b \n—…!", []),
        ("\ud800 lone", ["lone"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=80))
def test_words_have_no_white_space_and_are_short(text):
    found = words(text)
    assert all(word and len(word) <= 64 and not any(c.isspace() for c in word) for word in found)


@given(st.text("abc é京タก์한 1.-_'", max_size=30), st.text("xyz ", max_size=10))
def test_a_text_has_the_words_of_its_beginning(beginning, rest):
    assert set(words(beginning)) <= set(words(f"{beginning} \n{rest}"))


@pytest.mark.parametrize("piece", ["z", "z.", "a-", "1,", "'s", "é", "京", "ก์", "+", "_"])
def test_long_texts_take_no_longer_than_their_length(piece):
    start = time.perf_counter()
    words(piece * 100_000)
    assert time.perf_counter() - start < 2
