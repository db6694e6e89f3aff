"""All documents as tokens: split into parts that a memory can hold, in one array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data import packing
from msa_jax.data.records import Document
from msa_jax.data.templates import PromptBuilder


class PartTable(Sequence[np.ndarray]):
    """Token ids of every part's text; a part is a document, or a piece of one that was split.

    Attributes:
        lengths: `[n]` tokens of each part.
        of: the parts of each document, by its id.
    """

    def __init__(self, parts: Sequence[np.ndarray], of: Mapping[str, range]):
        """Copies the parts into one array, which takes far less room than many."""
        self.lengths = np.array([len(part) for part in parts], np.int64)
        self.of = of
        self._stops = np.cumsum(self.lengths)
        self._starts = self._stops - self.lengths
        self._tokens = np.concatenate(parts) if len(parts) else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens[self._starts[index] : self._stops[index]]


def split_documents(
    documents: Iterable[Document],
    builder: PromptBuilder,
    max_document_tokens: int,
    id_space: int,
) -> PartTable:
    """Encodes documents and splits long ones.

    Args:
        documents: with distinct ids.
        builder: encoder of the template.
        max_document_tokens: of a part, with the id and template tokens around it.
        id_space: parts will be called by ids in [1, id_space).

    Raises:
        ConfigError: if the template leaves no room for text.
    """
    # Numbers of as many digits can take more tokens or fewer, so look at some of all sizes.
    some_ids = np.linspace(1, id_space - 1, num=256, dtype=int).tolist()
    wrap_tokens = max(sum(map(len, builder.document_wrap(doc_id))) for doc_id in some_ids)
    max_text = max_document_tokens - wrap_tokens
    if max_text < 1:
        raise ConfigError(
            f"max_document_tokens ({max_document_tokens}) must exceed the {wrap_tokens} "
            "tokens that the template puts around a document."
        )
    documents = list(documents)
    texts = builder.tokenizer.encode_batch(map(builder.document_text, documents))
    break_ranks = builder.tokenizer.break_ranks()
    parts: list[np.ndarray] = []
    of = {}
    for document, tokens in zip(documents, texts, strict=True):
        first = len(parts)
        parts += packing.split_document(tokens, max_text, break_ranks)
        of[document.id] = range(first, len(parts))
    return PartTable(parts, of)
