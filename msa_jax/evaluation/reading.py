"""Answers of the model from originals that it is given, without memory: baselines that read.

The prompt is that of the last round of Memory Interleave, so that the model answers in the form in
which it was trained, whoever chose the documents.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.data.examples import Source, retrievals
from msa_jax.data.templates import Piece, PromptBuilder
from msa_jax.engine.generate import Generator
from msa_jax.engine.interleave import Conversation, InterleaveConfig, Library, interleave
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories, first_sizes
from msa_jax.typing import Int


class Given(NamedTuple):
    """What a question is answered from.

    Attributes:
        question: the question.
        hops: documents, as they might have been retrieved one round after the other.
    """

    question: str
    hops: list[list[Source]]

    @property
    def tokens(self) -> int:
        """Of the documents' texts."""
        return sum(len(source.tokens) for hop in self.hops for source in hop)


@dataclasses.dataclass(frozen=True)
class GivenReader:
    """The model without memory, ready for questions in batches.

    Attributes:
        generator: the model.
        builder: encoder of the template.
        max_tokens: of an answer, which is written greedily.
        batch_size: questions asked at once.
    """

    generator: Generator
    builder: PromptBuilder
    max_tokens: int
    batch_size: int

    def ask(
        self,
        given: Sequence[Given],
        original_tokens: int,
        on_batch: Callable[[int], None] = lambda questions: None,
    ) -> list[Conversation]:
        """Conversations on questions.

        Args:
            given: the questions, and what they are answered from.
            original_tokens: of a question's documents; the longest are cut until they fit.
            on_batch: called with the number of questions of each batch.
        """
        conversations: list[Conversation] = []
        for start in range(0, len(given), self.batch_size):
            some = list(given[start : start + self.batch_size])
            # All batches of one size, so that little is compiled.
            filled = some + some[-1:] * (min(self.batch_size, len(given)) - len(some))
            conversations += interleave(
                self.generator,
                self.builder,
                Library(None, ids_of=lambda slots: slots, originals=lambda ids: []),
                [one.question for one in filled],
                InterleaveConfig(max_rounds=0, max_original_tokens=original_tokens),
                SamplingConfig(max_tokens=self.max_tokens),
                given=[one.hops for one in filled],
            )[: len(some)]
            on_batch(len(some))
        return conversations


def best_of_rankings(
    memories: Memories, rankings: Sequence[Int[np.ndarray, " n"]], config: InterleaveConfig
) -> list[Given]:
    """What retrieve-then-read reads: the best parts, as many as Memory Interleave may read.

    Args:
        memories: of the set.
        rankings: of parts, best first, of the first questions.
        config: how many documents there may be in all, and in each round.
    """
    read = []
    for question, ranking in zip(memories.questions, rankings, strict=False):
        best = sources_of(memories.corpus, ranking[: config.max_documents])
        per_round = config.max_documents_per_round
        hops = [best[start : start + per_round] for start in range(0, len(best), per_round)]
        read.append(Given(question.question, hops))
    return read


def whole_memories(
    memories: Memories, size: int, count: int, builder: PromptBuilder, room: int, seed: int
) -> list[Given]:
    """What full attention reads: all parts of a memory, or as many as a context has room for.

    They come in random order, so that positives may be anywhere, what is left out too; the last
    part may be cut.

    Args:
        memories: of the set.
        size: of memory, by index.
        count: of questions, the first.
        builder: encoder of the template.
        room: tokens of the prompt.
        seed: of the order.
    """
    places = memories.places(np.arange(len(memories.corpus))).on_device()
    read = []
    for index, question in enumerate(memories.questions[:count]):
        draw = memories.draw([index], places, [size])
        inside = np.asarray(first_sizes(places.tier, places.position, draw))[0] == 0
        rng = np.random.default_rng((seed, zlib.crc32(question.id.encode())))
        order = rng.permutation(np.flatnonzero(inside))
        # No more than that many can fit, however short.
        sources = sources_of(memories.corpus, order[: max(0, room)])
        read.append(Given(question.question, [fitting(builder, question.question, sources, room)]))
    return read


def fitting(
    builder: PromptBuilder, question: str, sources: Sequence[Source], room: int
) -> list[Source]:
    """The first documents that fit into a prompt; the last of them may be cut.

    Args:
        builder: encoder of the template.
        question: to be answered from them.
        sources: the documents, in order.
        room: tokens of the prompt, all that the template adds included.
    """
    room -= _length([*retrievals(builder, question, [[]], 0), *builder.closing(question)])
    fit = []
    for source in sources:
        around = _around(builder, source.doc_id)
        text = source.tokens[: max(0, room - around)]
        if not len(text):
            break
        fit.append(dataclasses.replace(source, tokens=text))
        room -= around + len(text)
    return fit


def sources_of(corpus: Corpus, parts: Int[np.ndarray, " n"]) -> list[Source]:
    """Parts as a prompt cites them."""
    return [
        Source(int(corpus.ids[part]), corpus.text_tokens(part).astype(np.int32))
        for part in parts.tolist()
    ]


def _around(builder: PromptBuilder, doc_id: int) -> int:
    """Tokens that a document takes besides its text: its name, twice, and its end."""
    nothing = np.zeros(0, np.int32)
    alone = [builder.retrieved([doc_id]), builder.originals([doc_id], [nothing])]
    return _length(alone) - _length([builder.retrieved([]), builder.originals([], [])])


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.tokens) for piece in pieces)
