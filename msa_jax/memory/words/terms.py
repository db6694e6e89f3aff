"""The words of a text in any script, as the index compares them."""

from __future__ import annotations

import re
import unicodedata

# Vowel signs and accents are part of words, but `\w` leaves them out.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
# Accents, the points of Hebrew and Arabic, and invisible hints for line breaks and ligatures:
# people write them or leave them out.
_OPTIONAL = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u00ad\u200c\u200d]+"
)
# A longer run, such as encoded data, becomes several words.
_ASCII_WORD = re.compile("[a-z0-9]{1,64}")
_WORD = re.compile(rf"[\w{_MARKS}]{{1,64}}")
# Numbers, versions, paths, addresses and codes are words as a whole, besides their pieces.
# Starts of words only, for what is not a code is not to be looked at again from every character.
_CODE = re.compile(r"(?<!\w)(?:[^\W_]+(?:[-._/@:+#&][^\W_]+)+|[^\W\d_]+(?:\+\+|#)(?!\w))")
_PUNCTUATION = ".,;:!?()[]\"'"
_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"'s(?!\w)")
# Thai, Lao, Tibetan, Myanmar, Khmer, kana, Bopomofo and Han have no spaces between words, and
# Hangul has none between a word and its endings.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3105-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\U0001aff0-\U0001b16f"
    "\U00020000-\U000323af"
)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_CHARACTER = re.compile(f".[{_MARKS}]*")


def words(text: str) -> list[str]:
    """The words of a text, in order, then its codes.

    Case, width, accents and vowel points do not count, and neither does an English plural or
    possessive. Of scripts without spaces, every character and every pair of neighbours is a word.

    Args:
        text: a part or a question.

    Returns:
        Words without white space, of at most 64 characters.
    """
    if text.isascii():
        text, pattern = text.lower(), _ASCII_WORD
    else:
        text, pattern = _folded(text), _WORD
    text = _POSSESSIVE.sub("", _THOUSANDS.sub("", text))
    found = pattern.findall(text.replace("_", " "))
    if pattern is _WORD and _HAS_UNSPACED.search(text):
        found = [piece for word in found for piece in _pieces(word)]
    return [_singular(word) if word[-1] == "s" else word for word in found] + _codes(text)


def _folded(text: str) -> str:
    text = _OPTIONAL.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", text.casefold()).replace("\u2019", "'")


def _pieces(word: str) -> list[str]:
    """Characters and pairs of them where there are no spaces; other stretches as they are."""
    pieces = []
    for run in _RUN.findall(word):
        if _HAS_UNSPACED.match(run):
            characters = _CHARACTER.findall(run)
            pairs = map("".join, zip(characters, characters[1:], strict=False))
            pieces += [*characters, *pairs]
        else:
            pieces.append(run)
    return pieces


def _codes(text: str) -> list[str]:
    # Most of a text is none, and patterns are slow.
    likely = [x for x in text.split() if not x.strip(_PUNCTUATION).isalnum()]
    codes = _CODE.findall(" ".join(likely))
    # More than words with hyphens, and no longer than a word may be.
    return [x for x in codes if len(x) <= 64 and not x.replace("-", "").isalpha()]


def _singular(word: str) -> str:
    """A word that ends in s without it, if it may be a plural of English."""
    if len(word) < 4 or word[-2] in "ius" or not (word.isascii() and word.isalpha()):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]
