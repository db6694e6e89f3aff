"""Words of a text, and how rare they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"\w+(?:[.'’-]\w+)*")
# Words that say nothing about what a text is about.
# fmt: off
STOPWORDS = frozenset((
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "before", "being", "between", "both", "but", "by", "can", "could", "did", "do",
    "does", "during", "each", "for", "from", "had", "has", "have", "he", "her", "him", "his",
    "how", "i", "if", "in", "into", "is", "it", "its", "many", "more", "most", "much", "no",
    "not", "of", "on", "one", "only", "or", "other", "our", "out", "over", "she", "so", "some",
    "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "through", "to", "under", "until", "up", "was", "we", "were", "what", "when",
    "where", "which", "while", "who", "whom", "whose", "why", "will", "with", "would", "you",
    "your",
))
# fmt: on


def content_words(text: str) -> set[str]:
    """The words of a text in lower case, without those of every text."""
    return {word for word in WORD.findall(text.lower()) if word not in STOPWORDS}


def count_words(texts: Iterable[str]) -> Counter[str]:
    """In how many texts each word occurs, in lower case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(WORD.findall(text.lower())))
    return counts
