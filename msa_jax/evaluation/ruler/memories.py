"""The memories of RULER's samples in one bank: every document once, a mask for each question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.data.records import Question
from msa_jax.data.templates import PromptBuilder
from msa_jax.evaluation.corpus import Corpus, CorpusConfig, Kept, assemble
from msa_jax.evaluation.retrieval import EncodedMemory
from msa_jax.evaluation.ruler.benchmark import Task
from msa_jax.modules.state import Memory
from msa_jax.typing import Array, Bool, Int


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a task over a corpus, as readers of an evaluation take them.

    Attributes:
        corpus: documents of several tasks.
        task: what is asked.
        questions: of the samples.
        documents: of each, the documents with a needle that is asked for, by index.
        own: of each, all documents that are in its memory alone.
    """

    corpus: Corpus
    task: Task
    questions: list[Question]
    documents: list[list[int]]
    own: Int[np.ndarray, "samples needles"]


def gather(
    tasks: Sequence[Task], builder: PromptBuilder, max_document_tokens: int, seed: int
) -> list[Samples]:
    """Puts tasks that share a haystack over one corpus, the longest of their haystacks first.

    Args:
        tasks: of subtasks with the same kind of haystack, or of one at several sizes.
        builder: encoder of the template.
        max_document_tokens: that the documents were made for, so that none of them is cut here.
        seed: of the documents' ids.
    """
    documents = list(max((task.haystack for task in tasks), key=len))
    for task in tasks:
        documents += [document for sample in task.samples for document in sample.documents]
    index_of = {document.id: index for index, document in enumerate(documents)}
    config = CorpusConfig((), max_document_tokens=max_document_tokens, seed=seed)
    kept = [Kept(document, "ruler", 0) for document in documents]
    corpus = assemble(kept, index_of, config, builder)
    return [
        Samples(
            corpus,
            task,
            task.questions,
            [[index_of[key] for key in question.positive_ids] for question in task.questions],
            np.array([[index_of[x.id] for x in sample.documents] for sample in task.samples]),
        )
        for task in tasks
    ]


class RulerMemory(EncodedMemory):
    """A corpus of tasks in a bank, in which each question finds the memory of its own sample."""

    def of_questions(
        self,
        memories: Samples,
        size: int | None,
        questions: Sequence[int],
        positives: bool = True,
    ) -> Memory:
        """The bank with masks.

        Args:
            memories: of a task.
            size: None for the documents alone that have a needle that is asked for.
            questions: of the task, by index.
            positives: whether these documents are in it.
        """
        asked = np.array([memories.documents[question] for question in questions])
        if size is None:
            shared, replaced, own = 0, np.zeros((len(questions), 0), int), asked
        else:
            shared = len(memories.task.haystack)
            replaced = np.array([memories.task.samples[x].replaced for x in questions])
            own = memories.own[list(questions)]
        slot_of = self._places_of_parts()
        everyone = np.zeros(self._part_at.shape, np.bool_)
        everyone[slot_of[:shared]] = True
        mask = _masks(jax.device_put(everyone), slot_of[replaced], slot_of[own])
        if not positives:
            mask = mask.at[np.arange(len(asked))[:, None], slot_of[asked]].set(False)
        memory = self.bank.memory
        return Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=mask[None]))

    def _places_of_parts(self) -> Int[np.ndarray, " parts"]:
        (used,) = np.nonzero(self._part_at >= 0)
        slot_of = np.zeros(len(self.corpus), int)
        slot_of[self._part_at[used]] = used
        return slot_of


@jax.jit
def _masks(
    everyone: Bool[Array, " M"], left_out: Int[Array, "B m"], own: Int[Array, "B n"]
) -> Bool[Array, "B M"]:
    """What is in the memory of each question: what is in everyone's but for some, and its own."""
    rows = jnp.arange(len(own))[:, None]
    masks = jnp.broadcast_to(everyone, (len(own), len(everyone)))
    return masks.at[rows, left_out].set(False).at[rows, own].set(True)
