"""What comes from others is printed, and drives no terminal."""

from hypothesis import given

from msa_jax.terminal import escaped, note, show
from tests.hostile import DRIVES, few, texts


@few(200)
@given(texts)
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert not DRIVES.search(escaped(text)) and "\n" not in escaped(text)
    assert not DRIVES.search(escaped(text, lines=True))
    assert escaped(text, lines=True).count("\n") == text.count("\n")


def test_what_is_harmless_stays_as_it_is():
    text = "Ünï\tcödé 第二 \U0001f468\u200d\U0001f469 \\x1b ־א"
    assert escaped(text) == text
    assert escaped("a\nb\x1b[2J\u202e\udcff") == "a\\nb\\x1b[2J\\u202e\\udcff"


def test_lines_go_out_and_notes_beside_them(capsys):
    show("a\nb\r", end="")
    note("c\nd")
    assert capsys.readouterr() == ("a\nb\\r", "c\\nd\n")
