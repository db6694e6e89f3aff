"""Retrievers to compare with, over the same memories: BM25 and dense embeddings.

Both score all parts of the corpus, title and text as memory holds them, once for every question;
a memory of some size is those parts' scores alone. So BM25's weights of words are those of all
documents at every size, which is what an index that is filtered would have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from msa_jax.config import ConfigError
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.fusion import Listing
from msa_jax.engine.ranking import LISTED
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories, first_sizes
from msa_jax.evaluation.minilm import SentenceEncoder
from msa_jax.typing import Array, Float, Int

# The best parts of every question and size with their scores, as one iterates over them.
Rankings = Iterator[tuple[int, list[Listing]]]
_TEXTS_AT_ONCE = 16_384


class BM25:
    """Words, weighted by BM25 (`bm25s`, Lucene's variant, English stop words left out)."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer):
        """Indexes all parts.

        Raises:
            ConfigError: if `bm25s` is not installed.
        """
        try:
            import bm25s
        except ImportError:
            raise ConfigError("the BM25 baseline needs bm25s: pip install bm25s.") from None
        self._bm25s, self._corpus = bm25s, corpus
        texts = list(_all_texts(corpus, tokenizer, "texts"))
        tokens = bm25s.tokenize(texts, stopwords="en", show_progress=True)
        self._index = bm25s.BM25()
        self._index.index(tokens, show_progress=True)

    def rank(self, memories: Memories, sizes: Sequence[int]) -> Rankings:
        """Yields each question and its listings at each size (by index), at most `LISTED` parts.

        Parts that have no word of the question are not ranked.
        """
        places = memories.places(np.arange(len(self._corpus)))
        texts = [question.question for question in memories.questions]
        tokens = self._bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        for question, words in enumerate(tokens):
            known = [word for word in words if word in self._index.vocab_dict]
            scores = self._index.get_scores(known) if known else np.zeros(len(self._corpus))
            first = np.asarray(_first_sizes(memories, places, sizes, [question]))[0]
            yield question, _best_of_sizes(scores, first, len(sizes))


class Dense:
    """Cosine of embeddings of the question and of the part."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, encoder: SentenceEncoder):
        """Embeds all parts."""
        self._corpus, self._encoder = corpus, encoder
        tokens, texts = [], _all_texts(corpus, tokenizer, "word pieces")
        while some := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
            tokens += encoder.tokenize(some)
        with tqdm(total=len(tokens), desc="embed", unit="part", unit_scale=True) as bar:
            self._embeddings = encoder.encode(tokens, bar.update)

    def rank(self, memories: Memories, sizes: Sequence[int], batch_size: int = 64) -> Rankings:
        """Yields each question and its listings at each size (by index), `LISTED` parts."""
        texts = [question.question for question in memories.questions]
        queries = self._encoder.encode(self._encoder.tokenize(texts))
        places = memories.places(np.arange(len(self._corpus))).on_device()
        for start in range(0, len(texts), batch_size):
            some = np.minimum(np.arange(start, start + batch_size), len(texts) - 1)
            first = _first_sizes(memories, places, sizes, some)
            found = _nearest(queries[some], self._embeddings, first, len(sizes))
            scores, parts = jax.device_get(found)
            for row, question in enumerate(some[: len(texts) - start].tolist()):
                listed = scores[:, row] > -np.inf
                own = zip(parts[:, row], scores[:, row], listed, strict=True)
                yield question, [Listing(x[ok], y[ok]) for x, y, ok in own]


def _all_texts(corpus: Corpus, tokenizer: Tokenizer, what: str) -> Iterator[str]:
    texts = corpus.texts(tokenizer, range(len(corpus)))
    return iter(tqdm(texts, desc=what, total=len(corpus), unit="part", unit_scale=True))


def _first_sizes(memories, places, sizes, questions) -> Int[Array, "B places"]:
    return first_sizes(places.tier, places.position, memories.draw(questions, places, sizes))


def _best_of_sizes(
    scores: Float[np.ndarray, " n"], first: Int[np.ndarray, " n"], num_sizes: int
) -> list[Listing]:
    """The best parts of each memory, ties to the first; those that score nothing are left out."""
    (parts,) = np.nonzero((scores > 0) & (first < num_sizes))
    rankings = []
    for size in range(num_sizes):
        inside = parts[first[parts] <= size]
        if len(inside) > LISTED:
            least = -np.partition(-scores[inside], LISTED - 1)[LISTED - 1]
            inside = inside[scores[inside] >= least]
        best = inside[np.argsort(-scores[inside], kind="stable")][:LISTED]
        rankings.append(Listing(best, scores[best]))
    return rankings


@partial(jax.jit, static_argnames="num_sizes")
def _nearest(
    queries: Float[Array, "B D"],
    embeddings: Float[Array, "n D"],
    first: Int[Array, "B n"],
    num_sizes: int,
) -> tuple[Float[Array, "S B k"], Int[Array, "S B k"]]:
    scores = jnp.einsum("bd,nd->bn", queries, embeddings, preferred_element_type=jnp.float32)

    def of_size(size):
        inside = jnp.where(first <= size, scores, -jnp.inf)
        return jax.lax.top_k(inside, min(LISTED, scores.shape[1]))

    return jax.lax.map(of_size, jnp.arange(num_sizes))
