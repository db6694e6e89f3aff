"""Text of tokens while they are generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msa_jax.data.tokenizer import Tokenizer

# What decoders write for bytes that are no character, or not one yet.
_INCOMPLETE = "\ufffd"
# A token's text depends on few tokens before it, so that not all are decoded again and again.
_CONTEXT_TOKENS = 8


class TextStream:
    """Turns tokens to text, holding back what later tokens may change or end.

    Held back are characters of which bytes are missing, what may become a stop text, and white
    space at the end. White space at the start, and all from a stop text on, is dropped. The pieces
    joined are the same however the tokens are cut.

    Attributes:
        stopped_by: the stop text that was found; nothing comes after it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """Starts an empty text; `stop` are texts that end it, none empty."""
        self.stopped_by: str | None = None
        self._decode = tokenizer.decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._decoded = 0  # Characters of their text that were taken over into `_held`.
        self._held = ""
        self._is_empty = True

    def push(self, tokens: Iterable[int]) -> str:
        """Adds tokens and returns the text that is certain now."""
        self._tokens.extend(int(token) for token in tokens)
        text = self._decode(self._tokens)
        complete = text.removesuffix(_INCOMPLETE)
        self._take(complete)
        if complete == text:
            self._tokens = self._tokens[-_CONTEXT_TOKENS:]
            self._decoded = len(self._decode(self._tokens))
        return self._release(self._without_part_of_stop())

    def close(self) -> str:
        """Returns the rest of the text."""
        self._take(self._decode(self._tokens))
        return self._release(len(self._held))

    def _take(self, text: str) -> None:
        if self.stopped_by is None:
            self._held += text[self._decoded :]
            self._decoded = len(text)
            self._find_stop()

    def _find_stop(self) -> None:
        """Cuts at the stop text that is complete first, whatever arrives with it."""
        found = [(self._held.find(stop) + len(stop), stop) for stop in self._stop]
        found = [(end, -len(stop), stop) for end, stop in found if end >= len(stop)]
        if found:
            end, _, self.stopped_by = min(found)
            self._held = self._held[: end - len(self.stopped_by)]

    def _without_part_of_stop(self) -> int:
        """How many of the characters held cannot belong to a stop text."""
        if self.stopped_by is not None:
            return len(self._held)
        starts = range(len(self._held))
        may_stop = (
            start
            for start in starts
            if any(stop.startswith(self._held[start:]) for stop in self._stop)
        )
        return next(may_stop, len(self._held))

    def _release(self, count: int) -> str:
        certain = self._held[:count].rstrip()
        self._held = self._held[len(certain) :]
        if self._is_empty:
            certain = certain.lstrip()
            self._is_empty = not certain
        return certain
