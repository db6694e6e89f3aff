"""Documents into parts that a memory can hold: the same parts wherever they are used.

Training, banks and evaluation cut with one `PartWriter`, so that a model is asked over parts like
those that it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.records import Document
from msa_jax.data.splitting import LongText, TextPart, split_texts
from msa_jax.data.templates import PromptBuilder

# Room is left for the names of so many parts.
MOST_IDS = 10**8
# No template uses more tokens for the names of a part than for one of these.
_SAMPLE_IDS = np.linspace(MOST_IDS // 10, MOST_IDS - 1, num=256, dtype=int).tolist()
# Few texts of more characters than this for each token of room fit into one part.
_CHARACTERS_PER_TOKEN = 5
# Documents of about so many characters are cut together: their tokens are arrays for a moment.
_CHARACTERS_AT_ONCE = 2**24


class PartWriter:
    """Cuts documents into parts that memory can hold, and says how they are written.

    Attributes:
        max_text_tokens: what the template leaves to the text of a part.
    """

    def __init__(self, builder: PromptBuilder, max_document_tokens: int):
        """Measures the template.

        Raises:
            ConfigError: if it takes all of `max_document_tokens`.
        """
        self._builder, self._max_document_tokens = builder, max_document_tokens
        wrap_tokens = max(sum(map(len, builder.document_wrap(i))) for i in _SAMPLE_IDS)
        self.max_text_tokens = max_document_tokens - wrap_tokens
        if self.max_text_tokens < 1:
            raise ConfigError(
                f"max_document_tokens ({max_document_tokens}) must exceed the {wrap_tokens} tokens "
                "that the template puts around a document."
            )

    def split(self, documents: Iterable[Document]) -> list[list[TextPart]]:
        """The parts of each document; none of one without text."""
        return [parts for some in _slices(documents) for parts in self._split(some)]

    def write(self, part_id: int, text_tokens: np.ndarray) -> np.ndarray:
        """A part as memory holds it; a name longer than usual takes the place of the last words."""
        name_tokens = sum(map(len, self._builder.document_wrap(part_id)))
        return self._builder.document(
            part_id, text_tokens[: self._max_document_tokens - name_tokens]
        )

    def _split(self, documents: Sequence[Document]) -> list[list[TextPart]]:
        # Most documents are one part, which need not be looked at more closely.
        most = _CHARACTERS_PER_TOKEN * self.max_text_tokens
        small = [len(document.text) <= most for document in documents]
        texts = (
            self._builder.document_text(dataclasses.replace(document, text=document.text.strip()))
            for document, is_small in zip(documents, small, strict=True)
            if is_small
        )
        encoded = iter(self._builder.tokenizer.encode_batch(texts))
        parts = [
            self._whole(document, next(encoded) if is_small else None)
            for document, is_small in zip(documents, small, strict=True)
        ]
        long = [document for document, whole in zip(documents, parts, strict=True) if whole is None]
        cut = iter(self._cut(long))
        return [next(cut) if whole is None else whole for whole in parts]

    def _whole(self, document: Document, tokens: np.ndarray | None) -> list[TextPart] | None:
        """The only part of a document, or none if it has no text; None if it must be cut."""
        text = document.text
        if not text.strip():
            return []
        if tokens is None or len(tokens) > self.max_text_tokens:
            return None
        return [TextPart(len(text) - len(text.lstrip()), len(text.rstrip()), tokens)]

    def _cut(self, documents: Sequence[Document]) -> list[list[TextPart]]:
        titles = self._builder.tokenizer.encode_batch(document.title for document in documents)
        texts = [
            LongText(document.text, self._written(document.title, title_tokens))
            for document, title_tokens in zip(documents, titles, strict=True)
        ]
        return split_texts(texts, self.max_text_tokens, self._builder.tokenizer)

    def _written(self, title: str, title_tokens: np.ndarray) -> Callable[[str, bool], str]:
        """How the parts of a document are written: its title goes with the first."""
        if 2 * len(title_tokens) > self.max_text_tokens:
            # A title is not split; half of a part is enough of it.
            kept = title_tokens[: self.max_text_tokens // 2]
            title = self._builder.tokenizer.decode(kept).rstrip("�")
        return lambda text, is_first: self._builder.document_text(
            Document("", text, title if is_first else "")
        )


class PartTable(Sequence[np.ndarray]):
    """Token ids of every part's text; a part is a document, or a piece of one that was split.

    Attributes:
        lengths: `[n]` tokens of each part.
        spans: `[n, 2]` first character of each part in its document's text, and one past its last.
        of: the parts of each document, by its id; a document without text has none.
    """

    def __init__(self, parts: Sequence[TextPart], of: Mapping[str, range]):
        """Copies the parts into one array, which takes far less room than many."""
        self.lengths = np.array([len(part.tokens) for part in parts], np.int64)
        self.spans = np.array([(part.start, part.stop) for part in parts], np.int64).reshape(-1, 2)
        self.of = of
        self._stops = np.cumsum(self.lengths)
        self._starts = self._stops - self.lengths
        tokens = [part.tokens for part in parts]
        self._tokens = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens[self._starts[index] : self._stops[index]]

    def text(self, part: int, document: Document) -> str:
        """The characters of one of a document's parts, without its title."""
        start, stop = self.spans[part].tolist()
        return document.text[start:stop]


def split_documents(
    documents: Iterable[Document], builder: PromptBuilder, max_document_tokens: int
) -> PartTable:
    """Encodes documents and splits long ones.

    Args:
        documents: with distinct ids.
        builder: encoder of the template.
        max_document_tokens: of a part, with the id and template tokens around it.

    Raises:
        ConfigError: if the template leaves no room for text.
    """
    documents = list(documents)
    parts: list[TextPart] = []
    of = {}
    texts = PartWriter(builder, max_document_tokens).split(documents)
    for document, of_document in zip(documents, texts, strict=True):
        of[document.id] = range(len(parts), len(parts) + len(of_document))
        parts += of_document
    return PartTable(parts, of)


def _slices(documents: Iterable[Document]) -> Iterator[list[Document]]:
    some, characters = [], 0
    for document in documents:
        some.append(document)
        characters += len(document.text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some
