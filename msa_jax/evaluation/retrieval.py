"""Rankings of parts: how they are measured, and those of the model's own routers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.examples import token_block
from msa_jax.engine.encode import Encoder
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import LoadedModel
from msa_jax.engine.ranking import LISTED
from msa_jax.evaluation import metrics
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories, Places, first_sizes
from msa_jax.kernels.content import DISK
from msa_jax.memory.bank import Bank
from msa_jax.memory.chunks import Chunks, Layout
from msa_jax.memory.parts import Changes, PartTable
from msa_jax.modules.state import Memory, Routing
from msa_jax.typing import Int

# Places of a ranking that count.
DEPTH = 16
_RECALLS = (1, 4, DEPTH)


def ranking_measures(
    corpus: Corpus, documents: Sequence[int], ranking: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Recall, reciprocal rank, and whether all positives were found, of a ranking of parts.

    Args:
        corpus: whose parts they are.
        documents: the positives; each is as good as its best part.
        ranking: parts, best first.
    """
    ranks = metrics.ranks_of(corpus.document[ranking], documents)
    measures = {f"recall@{n}": metrics.recall_at(ranks, n) for n in _RECALLS}
    measures[f"mrr@{DEPTH}"] = metrics.reciprocal_rank(ranks, DEPTH)
    measures[f"all@{DEPTH}"] = metrics.all_at(ranks, DEPTH)
    return measures


def chance_measures(memories: Memories, question: int, size: int) -> dict[str, float]:
    """What a ranking at random would have on average, of a question with one positive.

    Of several positives, which are drawn together, it is the mean of each.
    """
    corpus, num_parts = memories.corpus, int(memories.num_parts[question, size])
    owners = corpus.document[memories.own[question]]
    of_document = [int((owners == d).sum()) for d in memories.documents[question]]
    return {
        f"recall@{n}": float(
            np.mean([metrics.chance_recall(num_parts, parts, n) for parts in of_document])
        )
        for n in _RECALLS
    }


class EncodedMemory:
    """Parts of a corpus in a bank, straight from the encoder: nothing is stored in between.

    Attributes:
        bank: as the engine has it.
        corpus: whose parts these are.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: Encoder,
        corpus: Corpus,
        parts: Int[np.ndarray, " n"],
        content_tier: str | None = None,
        on_load: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Encodes.

        Args:
            loaded: the model.
            encoder: of the model.
            corpus: the documents.
            parts: those to encode.
            content_tier: see `Bank`.
            on_load: see `Bank`.

        Raises:
            ConfigError: if they do not fit into memory.
        """
        store = _Encoding(encoder, corpus, parts)
        self.loaded, self.corpus = loaded, corpus
        self.bank = Bank(store, content_tier=content_tier, on_load=on_load)
        if self.bank.plan.content_tier == DISK:
            raise ConfigError(
                "content fits neither into device memory nor into host memory; set content_dtype "
                "to int8 or leave out the largest of memory_tokens."
            )
        slots = np.arange(self.bank.memory.index.num_documents)
        self._part_at = self.parts_of(self.bank.ids(slots))
        self._places: dict[Memories, Places] = {}

    def parts_of(self, ids: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Parts that are called so; -1 for -1."""
        return self.corpus.parts_called(ids)

    def of_questions(
        self,
        memories: Memories,
        size: int | None,
        questions: Sequence[int],
        positives: bool = True,
    ) -> Memory:
        """The bank, in which each question finds the parts of its own memory alone.

        Args:
            memories: of a set.
            size: of memory, by index; None for the positives alone.
            questions: of the set, by index.
            positives: whether the positives are in it.
        """
        if memories not in self._places:
            self._places[memories] = memories.places(self._part_at).on_device()
        places = self._places[memories]
        draw = memories.draw(questions, places, [0 if size is None else size])
        alone = dataclasses.replace(draw, counts=np.zeros_like(draw.counts))
        mask = first_sizes(places.tier, places.position, alone if size is None else draw) == 0
        if not positives:
            mask &= first_sizes(places.tier, places.position, alone) != 0
        memory = self.bank.memory
        return Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=mask[None]))


class _Encoding:
    """What a bank needs of a store: parts that are encoded when they are read."""

    version = 1

    def __init__(self, encoder: Encoder, corpus: Corpus, parts: Int[np.ndarray, " n"]):
        self.layout: Layout = encoder.layout
        self._encoder = encoder
        tokens = [corpus.part(part) for part in parts.tolist()]
        chunks = encoder.num_chunks(tokens)
        # The encoder takes the longest first: in its order, each batch is one stretch of memory.
        order = np.argsort(-chunks, kind="stable")
        self._tokens = [tokens[i] for i in order.tolist()]
        nowhere = np.zeros(len(order), int)
        self._table = PartTable(corpus.ids[parts[order]], chunks[order], nowhere, nowhere)

    def changes(self, since: int) -> Changes:
        """All parts, which are there from the beginning."""
        return Changes(self.version, self._table[: 0 if since else None], np.zeros(0, int))

    def read(self, parts: PartTable, content: bool = True) -> Iterator[tuple[np.ndarray, Chunks]]:
        """As `Store.read`; of no parts or of all."""
        for rows, chunks in self._encoder.encode_batches(self._tokens[: len(parts)]):
            yield rows, chunks if content else dataclasses.replace(chunks, content=None)


class Router:
    """The routers of a model as a retriever."""

    def __init__(self, generator: Generator, memory: EncodedMemory, batch_size: int):
        """Ranks with `generator` over `memory`, so many questions at once."""
        self._generator, self._memory, self._batch_size = generator, memory, batch_size
        self._builder = memory.loaded.builder

    def search(
        self, memories: Memories, size: int, on_batch: Callable[[int], None]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Parts and scores `[L, listed]` that the layers list for every question of a set.

        Args:
            memories: of the set.
            size: of memory, by index.
            on_batch: called with the number of questions of each batch.
        """
        blocks = [
            token_block(self._builder, self._builder.prompt(q.question)) for q in memories.questions
        ]
        # Of about one length, so that prompts are padded little, and to few lengths.
        order = np.argsort([len(block.tokens) for block in blocks], kind="stable")
        found: list[Any] = [None] * len(order)
        for start in range(0, len(order), self._batch_size):
            some = order[start : start + self._batch_size].tolist()
            some += some[-1:] * (self._batch_size - len(some))
            memory = self._memory.of_questions(memories, size, some)
            routing: Routing = self._generator.start(
                [blocks[i] for i in some], memory, room=1, search_docs=LISTED
            ).routing
            ids = self._memory.bank.ids(routing.top_docs)
            parts = self._memory.parts_of(ids)
            for row, question in enumerate(some):
                found[question] = (parts[:, row], routing.top_scores[:, row])
            on_batch(min(self._batch_size, len(order) - start))
        return found
