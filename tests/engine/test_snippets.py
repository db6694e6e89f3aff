"""What is shown of a document that was found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.engine.snippets import snippet

LONG = (
    " ".join(f"word{n}" for n in range(100)) + " and the lighthouse was repaired by Ada " + "x" * 99
)


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("It rained. Ada repaired it!\n\nAgain.", "Who REPAIRED it?", "Ada repaired it!"),
        ("One\nsentence,  two lines. Another.", "which lines?", "One sentence, two lines."),
        ("See e.g. the tower. And more.", "the tower", "See e.g. the tower."),
        ("It is of the sea. Harbors!", "Is it of harbors?", "Harbors!"),
        ("我们去北京。今天天气很好！上海呢？", "上海怎么样", "上海呢？"),
        ("Nothing in common. At all.", "Who?", "Nothing in common. At all."),
        ("", "Who?", ""),
    ],
)
def test_the_sentence_that_shares_most(text, question, expected):
    assert snippet(text, question) == expected


def test_of_a_long_sentence_what_shares_most_and_goes_on_longest():
    found = snippet(LONG, "who repaired the lighthouse", 60)
    assert found.startswith("…the lighthouse was repaired by Ada xx") and found.endswith("x…")
    assert snippet(LONG, "nothing", 60).startswith("word0 word1") and len(found) == 60


@given(st.text(alphabet="ab .\n。…", max_size=80), st.text(alphabet="ab ", max_size=9))
def test_it_is_one_line_of_the_text(text, question):
    found = snippet(text, question, 10)
    assert len(found) <= 10 and "\n" not in found
    if len(text.strip()) > 0:
        assert found.strip("…").rstrip() in " ".join(text.split())
