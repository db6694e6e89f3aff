"""The words of a document that say best why it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Letters that stand for words of their own are matched one by one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])(?<!e\.g\.)(?<!i\.e\.)\s+|(?<=[。！？])\s*|\s*\n\s*\n\s*")
_CUT = "…"


def snippet(text: str, question: str, width: int = 160) -> str:
    """The sentence of a text that shares most with a question, on one line.

    Long words count for more than short ones. Of a longer sentence than `width` characters the
    part that shares most is shown; of a text that shares nothing, the beginning.

    Args:
        text: of a document.
        question: whose words are looked for.
        width: characters at most.
    """
    wanted = _words(question)

    def shared(piece: str) -> int:
        return sum(map(len, wanted & _words(piece)))

    sentences = _SENTENCE_END.split(text.strip())
    best = max((x for one in sentences for x in _pieces(one.split(), width)), key=shared)
    return best if shared(best) else _shortened(" ".join(text.split()), width)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _pieces(words: list[str], width: int) -> Iterator[str]:
    """A sentence if it is short enough, else what starts at each word, the last first.

    Of pieces that share the same words, the last start shows most of what follows them.
    """
    whole = " ".join(words)
    if len(whole) <= width:
        yield whole
        return
    for start in range(len(words) - 1, 0, -1):
        yield _shortened(_CUT + " ".join(words[start : start + width]), width)
    yield _shortened(whole, width)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + _CUT
