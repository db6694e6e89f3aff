"""Questions made of statements: a name, a number or a date is taken out and asked for."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from msa_jax.data.words import STOPWORDS

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NO_NAME = "|".join(sorted(word.capitalize() for word in STOPWORDS if word != "may"))
_CAPITALISED = r"[A-Z][\w'’-]*(?:\.(?=\s?[A-Z]))?"
_SPAN = re.compile(
    rf"\b(?P<date>(?:\d{{1,2}} )?{_MONTH}(?: \d{{1,2}})?(?:,? \d{{4}})?\b)"
    r"|(?<![\w.,-])(?P<number>\d+(?:[.,]\d+)*)(?![\w-])"
    rf"|\b(?!(?:{_NO_NAME})\b)"
    rf"(?P<name>{_CAPITALISED}(?:(?: (?:of|the|de|la|van|von)){{0,2}} {_CAPITALISED})*)"
)
_YEAR = re.compile(r"1\d{3}|20\d\d")
_PRONOUN = re.compile(r"^(?:He|She|It|They|This|His|Her|Its|Their)\b")
_BEFORE_PLACE = ("in", "at", "near", "from", "to")
_BEFORE_TIME = ("in", "on", "since", "from", "until", "by", "of", "during", "around")
_AUXILIARIES = ("is", "are", "was", "were", "has", "have", "had", "can", "could", "will", "would")
_IN_PARENTHESES = re.compile(r"\s*\([^()]*\)")
# Words of the statement that a question keeps around what it asks for.
_MOST_BEFORE, _MOST_AFTER = 14, 10
_DROPPED, _STOPWORDS_DROPPED = 0.05, 0.15


class Cloze(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def make_cloze(sentence: str, subject: str, rng: random.Random) -> Cloze | None:
    """Asks for something that a sentence says.

    Args:
        sentence: a statement.
        subject: what a pronoun that opens it may stand for; "" if nobody knows.
        rng: source of randomness.

    Returns:
        None if there is nothing to ask for.
    """
    if rng.random() < 0.5:
        sentence = _IN_PARENTHESES.sub("", sentence)
    spans = [match for match in _SPAN.finditer(sentence) if _is_askable(match, subject)]
    if not spans:
        return None
    span = rng.choice(spans)
    before = sentence[: span.start()].split()
    after = sentence[span.end() :].rstrip(" .!?\"')").split()
    if subject and before and _PRONOUN.match(before[0]) and rng.random() < 0.7:
        before[0] = f"{subject}'s" if before[0] in ("His", "Her", "Its", "Their") else subject
    asked, before, after = _ask(span, before, after, rng)
    words = _ordered(asked, before[-_MOST_BEFORE:], after[:_MOST_AFTER], rng)
    question = " ".join(words)
    question = re.sub(r"\s+([,;:.])", r"\1", question).strip(" ,;:")
    if len(words) < 4 or span[0].casefold() in question.casefold():
        return None
    return Cloze(f"{question[0].upper()}{question[1:]}?", span[0])


def _is_askable(span: re.Match, subject: str) -> bool:
    # Any word may open a sentence; only several capitals make it a name.
    opens = span.start() == 0 and span.lastgroup == "name" and " " not in span[0]
    return span[0] != subject and not opens


def _ask(
    span: re.Match, before: list[str], after: list[str], rng: random.Random
) -> tuple[str, list[str], list[str]]:
    """The interrogative for a span, and the words around it that stay."""
    last = before[-1].lower() if before else ""
    is_year = _YEAR.fullmatch(span[0]) is not None and last in _BEFORE_TIME
    if span.lastgroup == "date" or is_year:
        asked = rng.choice(("when", "when", "what year", "in what year", "on what date"))
        return asked, before[:-1] if last in _BEFORE_TIME else before, after
    if span.lastgroup == "number":
        if after and after[0].isalpha() and after[0] not in STOPWORDS:
            return f"how many {after[0]}", before, after[1:]
        return rng.choice(("what number", "how much", "how many")), before, after
    if last in _BEFORE_PLACE and rng.random() < 0.7:
        asked = rng.choice(("where", "where", "what place", "in what place"))
        return asked, before[:-1], after
    words = span[0].split()
    may_be_person = 2 <= len(words) <= 3 and all(word[0].isupper() for word in words)
    return ("who" if rng.random() < (0.6 if may_be_person else 0.2) else "what"), before, after


def _ordered(asked: str, before: list[str], after: list[str], rng: random.Random) -> list[str]:
    """What is asked for mostly comes first, then the verb: "When was it made" of "It was made"."""
    if before and rng.random() < 0.15:
        return [*_thinned(before, rng), asked, *_thinned(after, rng)]
    verb = []
    if before:
        places = [place for place, word in enumerate(before) if word in _AUXILIARIES]
        verb = [before.pop(places[-1])] if places else rng.choice(([], ["did"]))
        if before and before[0].lower() in STOPWORDS:
            before[0] = before[0].lower()
    return [asked, *verb, *_thinned(before, rng), *_thinned(after, rng)]


def _thinned(words: list[str], rng: random.Random) -> list[str]:
    return [
        word
        for word in words
        if rng.random() >= (_STOPWORDS_DROPPED if word.lower() in STOPWORDS else _DROPPED)
    ]
