"""Answers of the whole engine, Memory Interleave included, and what became of the retrieval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from msa_jax.engine.conversation import Conversation, Find, Library, Round
from msa_jax.engine.generate import Generator
from msa_jax.engine.interleave import InterleaveConfig, interleave
from msa_jax.engine.ranking import LISTED, fuse_rankings, rank_documents
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.evaluation import metrics
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.retrieval import DEPTH, EncodedMemory
from msa_jax.typing import Int

# Controls: nothing to read, the right documents alone, and the smallest memory without them.
NO_MEMORY, ORACLE, RANDOM = "no memory", "oracle", "random"
CONTROLS = (NO_MEMORY, ORACLE, RANDOM)


@dataclasses.dataclass(frozen=True)
class Reader:
    """The engine over a memory, ready for questions in batches.

    Attributes:
        generator: the model.
        memory: all that may be in a question's memory.
        config: how much to read.
        max_tokens: of an answer, which is written greedily.
        batch_size: questions asked at once.
    """

    generator: Generator
    memory: EncodedMemory
    config: InterleaveConfig
    max_tokens: int
    batch_size: int

    def ask(
        self,
        memories: Memories,
        size: int | str,
        count: int,
        on_batch: Callable[[int], None] = lambda questions: None,
        find: Callable[[Sequence[int]], Find] | None = None,
    ) -> list[Conversation]:
        """Conversations on the first `count` questions of a set.

        Args:
            memories: of the set.
            size: of memory, by index; or one of `CONTROLS`.
            count: of questions.
            on_batch: called with the number of questions of each batch.
            find: what `Library.find` takes, of some questions; None if the routers rank alone.
        """
        conversations: list[Conversation] = []
        count = min(count, len(memories.questions))
        for start in range(0, count, self.batch_size):
            some = np.minimum(np.arange(start, start + self.batch_size), count - 1).tolist()
            memory = None
            if size == RANDOM:
                memory = self.memory.of_questions(memories, 0, some, positives=False)
            elif size != NO_MEMORY:
                drawn = None if size == ORACLE else size
                memory = self.memory.of_questions(memories, drawn, some)
            conversations += interleave(
                self.generator,
                self.memory.loaded.builder,
                Library(
                    memory,
                    self.memory.bank.ids,
                    self._originals,
                    find=None if find is None else find(some),
                ),
                [memories.questions[question].question for question in some],
                self.config,
                SamplingConfig(max_tokens=self.max_tokens),
                LISTED,
            )
            on_batch(min(self.batch_size, count - start))
        return conversations[:count]

    def _originals(self, ids: Sequence[int]) -> list[np.ndarray]:
        parts = self.memory.parts_of(np.array(ids, np.int64))
        return [self.memory.corpus.text_tokens(part).astype(np.int32) for part in parts.tolist()]


def answer_measures(
    memories: Memories, memory: EncodedMemory, question: int, conversation: Conversation
) -> tuple[dict[str, float], dict[str, Any]]:
    """What to know of a conversation, and what to keep of it.

    "first id" is whether the first id that was generated, of those that some layer routed to, is
    that of a positive. Exact match and F1 are SQuAD's. Two rankings are compared, of 16 parts each:
    that of the first round ("one round"), and that after Memory Interleave: the documents that were
    named, in the order in which they were read, and then the rankings of all rounds, fused, so that
    what an earlier round found is not forgotten.

    Args:
        memories: of the set.
        memory: that it was asked over.
        question: of the set, by index.
        conversation: on the question.
    """
    corpus, documents = memories.corpus, memories.documents[question]
    named = [
        part for one in conversation.rounds for part in memory.parts_of(np.array(one.named, int))
    ]
    rankings = [ranking_of(memory, one) for one in conversation.rounds]
    fused = fuse_rankings(rankings).tolist()
    interleaved = np.array(list(dict.fromkeys([*named, *fused])), int)
    ranks = [
        metrics.ranks_of(corpus.document[x[:DEPTH]], documents) for x in (rankings[0], interleaved)
    ]
    measures = {
        "first id": float(bool(named) and corpus.document[named[0]] in documents),
        f"recall@{DEPTH} one round": metrics.recall_at(ranks[0], DEPTH),
        f"recall@{DEPTH} interleaved": metrics.recall_at(ranks[1], DEPTH),
        f"all@{DEPTH} one round": metrics.all_at(ranks[0], DEPTH),
        f"all@{DEPTH} interleaved": metrics.all_at(ranks[1], DEPTH),
        "rounds": float(len(conversation.rounds)),
        **_of_any_answer(memories, question, conversation),
    }
    kept = {
        "answer": conversation.answer,
        "finished": conversation.finished,
        "named": [list(one.named) for one in conversation.rounds],
    }
    return measures, kept


def given_measures(
    memories: Memories, question: int, conversation: Conversation, tokens_read: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """What to know of an answer from documents that were given, and what to keep of it.

    Args:
        memories: of the set.
        question: of the set, by index.
        conversation: on the question.
        tokens_read: of the documents' texts.
    """
    measures = {
        "tokens read": float(tokens_read),
        **_of_any_answer(memories, question, conversation),
    }
    kept = {
        "answer": conversation.answer,
        "finished": conversation.finished,
        "read": list(conversation.documents),
    }
    return measures, kept


def _of_any_answer(
    memories: Memories, question: int, conversation: Conversation
) -> dict[str, float]:
    """What was read, how well that agrees with what is needed, and how right the answer is."""
    corpus, accepted = memories.corpus, memories.questions[question].answers
    read = corpus.document[corpus.parts_called(np.array(conversation.documents, int))].tolist()
    agreement = metrics.supporting_documents(read, memories.documents[question])
    measures = {
        "documents read": float(len(conversation.documents)),
        "read precision": agreement.precision,
        "read recall": agreement.recall,
        "read f1": agreement.f1,
    }
    if accepted:
        measures["exact match"] = metrics.exact_match(conversation.answer, accepted)
        measures["f1"] = metrics.f1_score(conversation.answer, accepted)
    return measures


def ranking_of(memory: EncodedMemory, one: Round) -> Int[np.ndarray, " n"]:
    """The engine's ranking of parts in a round, best first."""
    return rank_documents(memory.parts_of(one.ids), one.scores)[0].astype(int)
