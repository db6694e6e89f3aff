"""Subtasks at sizes: which documents a memory holds, what is asked, and how answers are scored.

    ruler = Ruler(builder, max_document_tokens=512, num_samples=100, seed=42, essays="essays/")
    task = ruler.task("niah_multikey_1", memory_tokens=1_000_000)
    answers = [reader(task.memory(sample), sample.question.question) for sample in task.samples]
    score(task, answers)

RULER makes a text for every sample. At 100M tokens that is as much work for every question as a
whole bank, so the samples here share a haystack, by kind of haystack even those of all subtasks
and sizes, and what is a sample's own are the few documents that its needles lie in. The memory of
a sample is the haystack with these in place of the documents that they were made of: it holds the
needles of no other sample. So a bank needs every document once, with a mask for each question.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.parts import PartWriter
from msa_jax.data.records import Document, Question
from msa_jax.data.templates import PromptBuilder
from msa_jax.evaluation.ruler import haystack as haystacks
from msa_jax.evaluation.ruler import scoring
from msa_jax.evaluation.ruler.haystack import Haystack
from msa_jax.evaluation.ruler.tasks import (
    ESSAY,
    NEEDLE,
    NOISE,
    SUBTASKS,
    Hidden,
    Needle,
    Subtask,
    Wording,
    draw,
    wording,
)
from msa_jax.typing import Int


@dataclasses.dataclass(frozen=True)
class Sample:
    """A question and the documents that are in its memory alone.

    Attributes:
        question: asks for the values of some keys. `answers` has one text, all values; positive are
            the documents with a needle that is asked for, negative those with another.
        references: the values, of which RULER counts how many are found.
        wording: what RULER says before the text, after it, and as the beginning of the answer.
        documents: with a needle each, in the order of the text.
        replaced: of each, the document of the haystack, by index, whose place it takes; of several
            with the same number each has a piece of it.
        num_tokens: of the whole memory, the names around documents not counted.
    """

    question: Question
    references: tuple[str, ...]
    wording: Wording
    documents: tuple[Document, ...]
    replaced: tuple[int, ...]
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class Task:
    """A subtask at a size.

    Attributes:
        subtask: its definition.
        memory_tokens: most tokens that a memory may have.
        haystack: what all samples share.
        samples: what each has of its own.
    """

    subtask: Subtask
    memory_tokens: int
    haystack: Sequence[Document]
    samples: Sequence[Sample]

    @property
    def questions(self) -> list[Question]:
        """Of all samples."""
        return [sample.question for sample in self.samples]

    @property
    def documents(self) -> Iterator[Document]:
        """Everything that a bank has to hold: the haystack and the documents of all samples."""
        own = (document for sample in self.samples for document in sample.documents)
        return itertools.chain(self.haystack, own)

    def memory(self, sample: Sample) -> Iterator[Document]:
        """The documents of a sample's memory, in order."""
        own: dict[int, list[Document]] = {}
        for index, document in zip(sample.replaced, sample.documents, strict=True):
            own.setdefault(index, []).append(document)
        for index, document in enumerate(self.haystack):
            yield from own.get(index, [document])


class Ruler:
    """The eight subtasks over one set of haystacks."""

    def __init__(
        self,
        builder: PromptBuilder,
        max_document_tokens: int,
        num_samples: int,
        seed: int,
        essays: str | os.PathLike | None = None,
    ):
        """Draws what the samples of all subtasks hide.

        Args:
            builder: counts tokens, and knows what the template puts around documents.
            max_document_tokens: of a document, with the id and template tokens around it; those of
                the haystack leave room for a needle.
            num_samples: of each subtask.
            seed: of everything.
            essays: texts for the subtasks that hide needles in essays (`open_source`).

        Raises:
            ConfigError: if documents have no room for a needle.
        """
        self._builder, self._seed, self._essays = builder, seed, essays
        self._hidden = {
            name: [draw(subtask, seed, number) for number in range(num_samples)]
            for name, subtask in SUBTASKS.items()
        }
        self._needle_tokens = {name: self._count(of_one) for name, of_one in self._hidden.items()}
        longest = max(tokens.max() for tokens in self._needle_tokens.values())
        self._writer = _writer(builder, max_document_tokens, int(longest))
        self._haystacks: dict[str, Haystack] = {}

    def task(self, name: str, memory_tokens: int) -> Task:
        """A subtask at a size, every memory less than a document smaller than that.

        Args:
            name: of the subtask, in `SUBTASKS`.
            memory_tokens: of a memory, the names around documents not counted.

        Raises:
            ConfigError: if there is no such subtask, it needs essays and there are none, or a
                memory has no room for a document with needles.
            RecordError: for a bad record among the essays.
        """
        if name not in SUBTASKS:
            raise ConfigError(f"subtask {name!r} is not one of {', '.join(SUBTASKS)}; correct it.")
        subtask = SUBTASKS[name]
        haystack = self._haystack(subtask)
        needle_tokens = int(self._needle_tokens[name].sum(axis=1).max())
        count = haystack.count(memory_tokens - needle_tokens)
        if count < 1:
            raise ConfigError(
                f"memory_tokens ({memory_tokens}) has no room for a document beside needles of "
                f"{needle_tokens} tokens; raise it."
            )
        placed = [_place(haystack, count, one) for one in self._hidden[name]]
        texts = iter(haystacks.with_counts([x.text for one in placed for x in one], self._builder))
        samples = []
        for number, (hidden, own) in enumerate(zip(self._hidden[name], placed, strict=True)):
            num_tokens = haystack.num_tokens(count)
            num_tokens -= sum(haystack.lengths[index] for index in {x.replaced for x in own})
            num_tokens += sum(next(texts).num_tokens for _ in own)
            prefix = f"{name}-{memory_tokens}-{number:05d}"
            samples.append(_sample(subtask, prefix, hidden, own, num_tokens))
        return Task(subtask, memory_tokens, haystack.documents[:count], samples)

    def _count(self, hidden: Sequence[Hidden]) -> Int[np.ndarray, "samples needles"]:
        """Tokens of needles, each with the space or the new line on either side."""
        texts = (f" {needle}\n" for one in hidden for needle in one.needles)
        return self._builder.tokenizer.count_batch(texts).reshape(len(hidden), -1)

    def _haystack(self, subtask: Subtask) -> Haystack:
        name = subtask.haystack_name
        if name not in self._haystacks:
            self._haystacks[name] = Haystack(name, subtask.haystack == ESSAY, self._texts(subtask))
        return self._haystacks[name]

    def _texts(self, subtask: Subtask) -> Iterator[haystacks.Text]:
        if subtask.haystack == NOISE:
            return haystacks.noise_texts(self._writer, self._builder)
        if subtask.haystack == NEEDLE:
            needles = (needle for one in self._hidden[subtask.name] for needle in one.needles)
            taken = {text for needle in needles for text in (needle.key, needle.value)}
            return haystacks.needle_texts(self._writer, self._builder, subtask, taken, self._seed)
        if self._essays is None:
            raise ConfigError(
                f"subtask {subtask.name!r} hides needles in essays, and there are none; name a "
                "folder of text files or a JSON Lines file."
            )
        return haystacks.essay_texts(self._writer, self._essays)


def score(task: Task, predictions: Sequence[str]) -> float:
    """RULER's score of a task, from 0 to 100.

    Args:
        task: what was asked.
        predictions: an answer for each sample, in order.
    """
    pairs = zip(predictions, task.samples, strict=True)
    return scoring.percent([scoring.share_found(text, x.references) for text, x in pairs])


class _Placed(NamedTuple):
    """A document with a needle, and the one of the haystack that it was made of."""

    replaced: int
    needle: Needle
    text: str


def _writer(builder: PromptBuilder, max_document_tokens: int, needle_tokens: int) -> PartWriter:
    """Cuts documents that leave room for a needle."""
    try:
        return PartWriter(builder, max_document_tokens - needle_tokens)
    except ConfigError as error:
        raise ConfigError(
            f"max_document_tokens ({max_document_tokens}) has no room for text beside a needle of "
            f"{needle_tokens} tokens and what the template puts around a document; raise it."
        ) from error


def _place(haystack: Haystack, count: int, hidden: Hidden) -> list[_Placed]:
    """Hides the needles of a sample in the first `count` documents of a haystack."""
    within: dict[int, list[tuple[Needle, float]]] = {}
    for needle, depth in zip(hidden.needles, hidden.depths, strict=True):
        index, depth_within = haystack.locate(depth, count)
        within.setdefault(index, []).append((needle, depth_within))
    placed = []
    for index, pairs in within.items():
        needles, depths = zip(*pairs, strict=True)
        text = haystack.documents[index].text
        texts = haystacks.hide(text, needles, depths, haystack.is_essay)
        placed += [_Placed(index, *own) for own in zip(needles, texts, strict=True)]
    return placed


def _sample(
    subtask: Subtask, prefix: str, hidden: Hidden, placed: Sequence[_Placed], num_tokens: int
) -> Sample:
    documents = tuple(Document(f"{prefix}-{i}", one.text) for i, one in enumerate(placed))
    ids: dict[bool, list[str]] = {True: [], False: []}
    for document, one in zip(documents, placed, strict=True):
        ids[one.needle.key in hidden.asked].append(document.id)
    words = wording(subtask, hidden.asked)
    question = Question(
        id=prefix,
        question=words.question,
        answers=(", ".join(hidden.answers),),
        positive_ids=tuple(ids[True]),
        negative_ids=tuple(ids[False]),
    )
    replaced = tuple(one.replaced for one in placed)
    return Sample(question, hidden.answers, words, documents, replaced, num_tokens)
