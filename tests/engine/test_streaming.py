"""Streamed text is the text, whatever the pieces; what stops it is found wherever it falls."""

from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.streaming import TextStream

TOKENIZER = Tokenizer.load("docs-4k")
# Characters of one to four bytes, white space, and few letters, so that stop texts occur.
TEXTS = st.text("ab \né語🙂", max_size=30)


def streamed(tokens, stop, cuts=()):
    stream = TextStream(TOKENIZER, stop)
    bounds = [0, *sorted(cuts), len(tokens)]
    pieces = [stream.push(tokens[i:j]) for i, j in zip(bounds, bounds[1:], strict=False)]
    return [*pieces, stream.close()], stream.stopped_by


def cut_at_first_complete(text, stop):
    for end in range(len(text) + 1):
        ending = [x for x in stop if text[:end].endswith(x)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    text=TEXTS,
    stop=st.lists(st.text("ab \n語", min_size=1, max_size=3), max_size=3),
    data=st.data(),
)
def test_pieces_make_the_text_up_to_the_first_stop(text, stop, data):
    tokens = TOKENIZER.encode(text).tolist()
    cuts = data.draw(st.lists(st.integers(0, len(tokens))))
    pieces, stopped_by = streamed(tokens, stop, cuts)
    expected, expected_stop = cut_at_first_complete(text, stop)
    assert "".join(pieces) == expected.strip()
    assert stopped_by == expected_stop
    assert streamed(tokens, stop)[1] == stopped_by


def test_text_comes_as_soon_as_it_is_certain():
    tokens = TOKENIZER.encode("ab🙂 ab").tolist()
    pieces, _ = streamed(tokens, ["xy"], range(1, len(tokens)))
    shown = [piece for piece in pieces[:-1] if piece]
    assert "".join(shown) == "ab🙂 ab" and len(shown) > 2
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_special_token_stops_the_text():
    tokens = [*TOKENIZER.encode(" ab"), TOKENIZER.token_id("<|im_end|>"), *TOKENIZER.encode("b")]
    pieces, stopped_by = streamed(tokens, ["<|im_end|>"], range(len(tokens)))
    assert "".join(pieces) == "ab" and stopped_by == "<|im_end|>"


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    tokens = TOKENIZER.encode("語").tolist()[:-1]
    pieces, _ = streamed(tokens, [], range(len(tokens)))
    assert "".join(pieces[:-1]) == "" and pieces[-1] == "\ufffd"


def test_long_texts_are_not_decoded_from_the_start(monkeypatch):
    longest = 0

    def decode(ids, original=TOKENIZER.decode):
        nonlocal longest
        longest = max(longest, len(ids))
        return original(ids)

    monkeypatch.setattr(TOKENIZER, "decode", decode)
    stream = TextStream(TOKENIZER)
    tokens = TOKENIZER.encode("ab 語 " * 300).tolist()
    text = "".join(stream.push([token]) for token in tokens) + stream.close()
    assert text == ("ab 語 " * 300).strip() and longest < 20
