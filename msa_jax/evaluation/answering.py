"""Answers of a suite's questions: over memory, of controls, and of baselines that read.

All of them answer the same questions with the same model, greedily, and are measured alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from msa_jax.data.templates import PromptBuilder
from msa_jax.engine.conversation import Conversation, Find
from msa_jax.engine.generate import Generator
from msa_jax.evaluation import qa, reading
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.results import Results, columns
from msa_jax.evaluation.retrieval import EncodedMemory
from msa_jax.evaluation.suite_config import (
    ANSWERS,
    FULL_ATTENTION,
    LOOK_ANSWERS,
    MSA,
    SuiteConfig,
)
from msa_jax.typing import Int

# Measures of a conversation, and what to keep of it.
_Measured = tuple[dict[str, float], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answering:
    """Asks what a suite has not asked yet, and writes it down.

    Attributes:
        config: of the suite.
        sets: memories by the name of the set.
        results: of the suite.
    """

    config: SuiteConfig
    sets: Mapping[str, Memories]
    results: Results

    def missing(self, set_name: str, memory_tokens: int, system: str) -> int:
        """How many questions a system has still to answer: those of the set, or none."""
        count = min(self.config.sets[set_name].answered, len(self.sets[set_name].questions))
        return 0 if self.results.has(set_name, memory_tokens, system) else count

    def sizes(self, set_name: str, system: str) -> list[int]:
        """Sizes of memory, by index, at which a system has still to answer."""
        if system not in self.config.systems:
            return []
        return [
            size
            for size, tokens in enumerate(self.config.memory_tokens)
            if tokens in self._tokens_of(system) and self.missing(set_name, tokens, system)
        ]

    def controls(self, set_name: str) -> list[str]:
        """Controls that a set still needs: every system that answers is measured beside them."""
        return [x for x in qa.CONTROLS if self.missing(set_name, 0, f"{MSA} {x}")]

    def over_memory(
        self,
        generator: Generator,
        memory: EncodedMemory,
        sizes: Sequence[int],
        find: Callable[[str, int, Sequence[int]], Find],
    ) -> None:
        """Memory Interleave: the controls, and the memories of these sizes, by index.

        Args:
            generator: the model.
            memory: that holds the memories of these sizes.
            sizes: by index.
            find: what `Library.find` takes, of a set, a size and some questions, for answers that
                rest on one ranking of several.
        """
        config = self.config
        reader = qa.Reader(
            generator, memory, config.interleave, config.max_answer_tokens, config.answer_batch_size
        )
        for name, memories in self.sets.items():
            asked = [(control, 0, f"{MSA} {control}") for control in self.controls(name)]
            asked += [
                (size, config.memory_tokens[size], system)
                for system in (ANSWERS, LOOK_ANSWERS)
                for size in self.sizes(name, system)
                if size in sizes
            ]
            for size, memory_tokens, system in asked:
                count = self.missing(name, memory_tokens, system)
                finding = partial(find, name, size) if system == LOOK_ANSWERS else None
                with _bar(system, name, memory_tokens, count) as bar:
                    conversations = reader.ask(memories, size, count, bar.update, finding)
                measured = (
                    qa.answer_measures(memories, memory, question, conversation)
                    for question, conversation in enumerate(conversations)
                )
                self._add(name, memory_tokens, system, measured)

    def from_rankings(
        self,
        generator: Generator,
        builder: PromptBuilder,
        set_name: str,
        size: int,
        system: str,
        rankings: Sequence[Int[np.ndarray, " n"]],
    ) -> None:
        """Retrieve-then-read: the best parts of rankings of a set's first questions."""
        config, tokens = self.config, self.config.memory_tokens[size]
        count = self.missing(set_name, tokens, system)
        given = reading.best_of_rankings(self.sets[set_name], rankings[:count], config.interleave)
        reader = reading.GivenReader(
            generator, builder, config.max_answer_tokens, config.answer_batch_size
        )
        budget = config.interleave.max_original_tokens
        with _bar(system, set_name, tokens, count) as bar:
            conversations = reader.ask(given, budget, bar.update)
        read = [min(one.tokens, budget) for one in given]
        self._add_given(set_name, tokens, system, read, conversations)

    def full_attention(self, generator: Generator, builder: PromptBuilder) -> None:
        """All documents of the memory at once, as far as the context goes."""
        config = self.config
        room = config.context_tokens - builder.memory.top_k_docs - config.max_answer_tokens
        # Prompts are about as long as a context.
        at_once = max(1, config.encode_batch_tokens // config.context_tokens)
        reader = reading.GivenReader(
            generator, builder, config.max_answer_tokens, min(at_once, config.answer_batch_size)
        )
        for name, memories in self.sets.items():
            for size in self.sizes(name, FULL_ATTENTION):
                tokens = config.memory_tokens[size]
                count = self.missing(name, tokens, FULL_ATTENTION)
                given = reading.whole_memories(memories, size, count, builder, room, config.seed)
                with _bar(FULL_ATTENTION, name, tokens, count) as bar:
                    conversations = reader.ask(given, config.context_tokens, bar.update)
                read = [one.tokens for one in given]
                self._add_given(name, tokens, FULL_ATTENTION, read, conversations)

    def _tokens_of(self, system: str) -> Sequence[int]:
        """Sizes of memory that a system is asked over.

        Full attention over more than a context is that over some documents at random, so that the
        smallest memory that is more than that says it all.
        """
        sizes = sorted(self.config.answer_memory_tokens)
        if system != FULL_ATTENTION:
            return sizes
        num_fitting = sum(size <= self.config.context_tokens for size in sizes)
        return sizes[: num_fitting + 1]

    def _add_given(
        self,
        set_name: str,
        memory_tokens: int,
        system: str,
        tokens_read: Sequence[int],
        conversations: Sequence[Conversation],
    ) -> None:
        measured = (
            qa.given_measures(self.sets[set_name], question, conversation, read)
            for question, (conversation, read) in enumerate(
                zip(conversations, tokens_read, strict=True)
            )
        )
        self._add(set_name, memory_tokens, system, measured)

    def _add(
        self, set_name: str, memory_tokens: int, system: str, measured: Iterable[_Measured]
    ) -> None:
        measured, questions = list(measured), self.sets[set_name].questions
        kept = [
            {"question": question.id, **said, **measures}
            for question, (measures, said) in zip(questions, measured, strict=False)
        ]
        measures = columns(measures for measures, _ in measured)
        self.results.add(set_name, memory_tokens, system, measures, kept)


def _bar(system: str, set_name: str, memory_tokens: int, count: int) -> tqdm:
    title = f"{system} {set_name} {memory_tokens:,}"
    return tqdm(desc=title, total=count, unit="question")
