"""Long texts into parts that fit, cut where a paragraph ends, or else a sentence, or else a word.

A text is never tokenised in one piece. It is measured in short units between possible cuts, which
are then put together; each part is encoded as it will be used, and cut again should it be longer
than its units were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.tokenizer import Tokenizer

_ANYWHERE, _WORD, _SENTENCE, _PARAGRAPH = range(4)
# A line's end, or that of a sentence; white space goes to what follows, as in most tokenizers.
_ENDS = re.compile(r"""\n\s*|[.!?…]["')\]»”’]*(?=[^\S\n])|[。！？][」』”’）]*""")
_LAST_SPACE = re.compile(r"\s(?=\S*\Z)")
# Characters that show how many tokens a text has per character.
_SAMPLE = 2000
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


def split_text(
    text: str,
    max_tokens: int,
    tokenizer: Tokenizer,
    write: Callable[[str, bool], str] = lambda text, is_first: text,
) -> list[TextPart]:
    """Cuts a text into parts that together are all of it but white space between them.

    Args:
        text: of any length.
        max_tokens: longest part. A part is cut in its second half, so that only the last is short.
        tokenizer: counts.
        write: what to encode for the text of a part; is it the first of its text?

    Returns:
        Parts in order; none for a text of white space.

    Raises:
        ConfigError: if `max_tokens` has no room for a single character.
    """
    return list(_Splitter(text, max_tokens, tokenizer, write).split(0, len(text), max_tokens))


class _Splitter:
    """One text that is being cut."""

    def __init__(
        self, text: str, max_tokens: int, tokenizer: Tokenizer, write: Callable[[str, bool], str]
    ):
        self._text, self._max_tokens = text, max_tokens
        self._tokenizer, self._write = tokenizer, write
        self._first = len(text) - len(text.lstrip())
        # What is written around the text of the first part and of the others.
        self._around_first, self._around = tokenizer.count_batch(
            [write("", True), write("", False)]
        )

    def split(self, start: int, stop: int, target: int) -> Iterator[TextPart]:
        """Parts of a stretch of text, of about `target` tokens at most."""
        spans = [self._trimmed(*span) for span in self._spans(start, stop, target)]
        spans = [(start, stop) for start, stop in spans if start < stop]
        texts = (self._write(self._text[a:b], a == self._first) for a, b in spans)
        for span, tokens in zip(spans, self._tokenizer.encode_batch(texts), strict=True):
            if len(tokens) <= self._max_tokens:
                yield TextPart(*span, tokens)
            elif span[1] - span[0] > 1:
                yield from self.split(*span, target * 3 // 4)
            else:
                raise ConfigError(
                    f"a part of one character has {len(tokens)} tokens with all that belongs to "
                    f"it, but at most {self._max_tokens} are allowed; raise max_document_tokens."
                )

    def _trimmed(self, start: int, stop: int) -> tuple[int, int]:
        part = self._text[start:stop]
        return start + len(part) - len(part.lstrip()), stop - len(part) + len(part.rstrip())

    def _spans(self, start: int, stop: int, target: int) -> Iterator[tuple[int, int]]:
        """Puts units together while they have at most `target` tokens."""
        sample = self._text[start : min(stop, start + _SAMPLE)]
        sample_tokens = max(1, len(self._tokenizer.encode(sample)))
        longest = max(1, target * len(sample) // (_UNITS_PER_PART * sample_tokens))
        ends, ranks = self._cuts(start, stop, longest)
        starts = np.append(start, ends[:-1])
        units = (self._text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True))
        total = np.cumsum(self._tokenizer.count_batch(units))
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
            yield int(starts[unit]), int(ends[full - 1])
            unit, done = full, total[full - 1]

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
