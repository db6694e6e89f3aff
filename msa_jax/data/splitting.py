"""Long texts into parts that fit, cut where a paragraph ends, or else a sentence, or else a word.

A text is never tokenised in one piece. It is measured in short units between possible cuts, which
are then put together; each part is encoded as it will be used, and cut again should it be longer
than its units were.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.tokenizer import Tokenizer

_ANYWHERE, _WORD, _SENTENCE, _PARAGRAPH = range(4)
# A line's end, or that of a sentence; white space goes to what follows, as in most tokenizers.
_ENDS = re.compile(r"""\n\s*|[.!?…]["')\]»”’]*(?=[^\S\n])|[。！？][」』”’）]*""")
_LAST_SPACE = re.compile(r"\s(?=\S*\Z)")
# Characters that show how many tokens a text has per character.
_SAMPLE = 500
# Text between two possible cuts is at most about this share of a part.
_UNITS_PER_PART = 8


class TextPart(NamedTuple):
    """A piece of a text.

    Attributes:
        start: its first character, which is not white space.
        stop: one past its last character, which is not white space either.
        tokens: int32 ids of it as `write` has it.
    """

    start: int
    stop: int
    tokens: np.ndarray


class LongText(NamedTuple):
    """A text to cut.

    Attributes:
        text: of any length.
        write: what to encode for the text of a part; is it the first of its text?
    """

    text: str
    write: Callable[[str, bool], str] = lambda text, is_first: text


def split_texts(
    texts: Iterable[LongText], max_tokens: int, tokenizer: Tokenizer
) -> list[list[TextPart]]:
    """Cuts each text into parts that together are all of it but white space between them.

    Args:
        texts: what to cut.
        max_tokens: longest part. A part is cut in its second half, so that only the last is short.
        tokenizer: counts; what many texts need counted next is counted together.

    Returns:
        Parts of each text in order; none for a text of white space.

    Raises:
        ConfigError: if `max_tokens` has no room for a single character.
    """
    splittings = [_Splitter(one, max_tokens).split() for one in texts]
    found: dict[int, list[TextPart]] = {}
    requests = {index: next(splitting) for index, splitting in enumerate(splittings)}
    while requests:
        encoded = iter(tokenizer.encode_batch(itertools.chain(*requests.values())))
        answers = {index: [next(encoded) for _ in asked] for index, asked in requests.items()}
        requests = {}
        for index, answer in answers.items():
            try:
                requests[index] = splittings[index].send(answer)
            except StopIteration as end:
                found[index] = end.value
    return [found[index] for index in range(len(splittings))]


T = TypeVar("T")
# Yields texts, is sent the tokens of each, and returns what it made of them.
_Asking = Generator[list[str], list[np.ndarray], T]


class _Splitter:
    """One text that is being cut."""

    def __init__(self, long: LongText, max_tokens: int):
        self._text, self._write = long
        self._max_tokens = max_tokens
        self._first = len(self._text) - len(self._text.lstrip())
        # Tokens of what is written around the text of the first part and of the others.
        self._around_first = self._around = 0

    def split(self) -> _Asking[list[TextPart]]:
        """The parts of the text."""
        around = yield [self._write("", True), self._write("", False)]
        self._around_first, self._around = map(len, around)
        return (yield from self._split(0, len(self._text), self._max_tokens))

    def _split(self, start: int, stop: int, target: int) -> _Asking[list[TextPart]]:
        """Parts of a stretch of text, of about `target` tokens at most."""
        spans = yield from self._spans(start, stop, target)
        spans = [self._trimmed(*span) for span in spans]
        spans = [(start, stop) for start, stop in spans if start < stop]
        encoded = yield [self._write(self._text[a:b], a == self._first) for a, b in spans]
        parts = []
        for span, tokens in zip(spans, encoded, strict=True):
            if len(tokens) <= self._max_tokens:
                parts.append(TextPart(*span, tokens))
            elif span[1] - span[0] > 1:
                parts += yield from self._split(*span, target * 3 // 4)
            else:
                raise ConfigError(
                    f"a part of one character has {len(tokens)} tokens with all that belongs to "
                    f"it, but at most {self._max_tokens} are allowed; raise max_document_tokens."
                )
        return parts

    def _trimmed(self, start: int, stop: int) -> tuple[int, int]:
        part = self._text[start:stop]
        return start + len(part) - len(part.lstrip()), stop - len(part) + len(part.rstrip())

    def _spans(self, start: int, stop: int, target: int) -> _Asking[list[tuple[int, int]]]:
        """Puts units together while they have at most `target` tokens."""
        sample = self._text[start : min(stop, start + _SAMPLE)]
        (sample_tokens,) = yield [sample]
        longest = max(1, target * len(sample) // (_UNITS_PER_PART * max(1, len(sample_tokens))))
        ends, ranks = self._cuts(start, stop, longest)
        starts = np.append(start, ends[:-1])
        units = [self._text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        total = np.cumsum([len(tokens) for tokens in (yield units)])
        spans = []
        unit, done = 0, 0
        while unit < len(ends):
            at_start = starts[unit] <= self._first
            budget = target - (self._around_first if at_start else self._around)
            full = int(np.searchsorted(total, done + budget, side="right"))
            if full < len(ends):
                half = int(np.searchsorted(total, done + budget // 2))
                # At least one unit, even if it does not fit.
                full = max(full, unit + 1)
                candidates = ranks[min(max(half, unit), full - 1) : full]
                full -= int(np.argmax(candidates[::-1]))
            spans.append((int(starts[unit]), int(ends[full - 1])))
            unit, done = full, total[full - 1]
        return spans

    def _cuts(self, start: int, stop: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the text may be cut, about `longest` characters apart, and how good that is."""
        ends, ranks = [start], [_ANYWHERE]
        for end, rank in self._good_cuts(start, stop):
            while end - ends[-1] > longest:
                between, rank_between = self._between_words(ends[-1], ends[-1] + longest)
                ends.append(between)
                ranks.append(rank_between)
            # Of two cuts that are close only the better is kept, or there would be too many.
            if 4 * (end - ends[-1]) > longest:
                ends.append(end)
                ranks.append(rank)
            elif rank > ranks[-1] and len(ends) > 1:
                ends[-1], ranks[-1] = end, rank
        # The last cut may have been left out; an empty unit does no harm.
        return np.array([*ends[1:], stop], int), np.array([*ranks[1:], _PARAGRAPH], np.int8)

    def _good_cuts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for match in _ENDS.finditer(self._text, start, stop):
            if match[0][0] != "\n":
                yield match.end(), _SENTENCE
            elif match.start() > start:
                yield match.start(), _PARAGRAPH if match[0].count("\n") > 1 else _SENTENCE
        yield stop, _PARAGRAPH

    def _between_words(self, start: int, stop: int) -> tuple[int, int]:
        """The last cut between words in a stretch of text, or else its end."""
        space = _LAST_SPACE.search(self._text, start + 1, stop)
        return (stop, _ANYWHERE) if space is None else (space.start(), _WORD)
