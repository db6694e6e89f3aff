"""Parts of documents as text again, to make queries of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from msa_jax.data.parts import PartTable
from msa_jax.data.records import Document
from msa_jax.data.words import WORD, count_words

# How rare a word is can be told from some of the documents.
_COUNTED_DOCUMENTS = 20_000
# A word in at most this share of them tells a document from most others.
_RARE_SHARE = 1 / 500
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9])""")
_FEWEST_WORDS = 5


class Passage(NamedTuple):
    """A part of a document.

    Attributes:
        part: which.
        title: of the document.
        text: of the part, without the title.
        is_named: whether the title alone tells it from all others.
    """

    part: int
    title: str
    text: str
    is_named: bool

    def sentences(self) -> list[str]:
        """The sentences that are long enough to say something; the whole text if none is."""
        pieces = _SENTENCE_END.split(self.text)
        return [x for x in pieces if x.count(" ") + 1 >= _FEWEST_WORDS] or [self.text]


class Passages(Sequence[Passage]):
    """The parts of many documents in the order of their titles.

    Attributes:
        by_title: where each document begins, by its title if no other document has it.
    """

    def __init__(self, documents: Sequence[Document], parts: PartTable):
        """`parts` may hold those of other documents too."""
        documents = sorted(
            (document for document in documents if document.text.strip()),
            key=lambda document: document.title,
        )
        titles = Counter(document.title for document in documents)
        counted = documents[:: max(1, len(documents) // _COUNTED_DOCUMENTS)]
        self._counts = count_words(document.text for document in counted)
        self._rare = max(1, int(len(counted) * _RARE_SHARE))
        self.by_title: dict[str, int] = {}
        self._passages: list[Passage] = []
        for document in documents:
            is_named = bool(document.title) and titles[document.title] == 1
            if is_named:
                self.by_title[document.title] = len(self._passages)
            for part in parts.of[document.id]:
                text = parts.text(part, document).strip()
                is_first = part == parts.of[document.id].start
                self._passages.append(Passage(part, document.title, text, is_named and is_first))

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, index: int) -> Passage:
        return self._passages[index]

    def count(self, word: str) -> int:
        """In how many of the counted documents a word occurs."""
        return self._counts.get(word.lower(), 0)

    def is_specific(self, text: str) -> bool:
        """Whether a text has a word that few documents have."""
        return any(self.count(word) <= self._rare for word in WORD.findall(text))
