"""One memory group of a training batch: B questions and a memory that answers them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.core.segments import TokenBlock, TrainingBatch
from msa_jax.data import packing
from msa_jax.data.config import BatchShape
from msa_jax.data.dataset import TextDataset
from msa_jax.data.examples import Asked, Source, build_examples, choose_step
from msa_jax.data.queries import GivenQueries, Query

# Some documents will not fit where others left off.
_DRAWN_SHARE = 1.5
# The questions of a group that must find room for their documents before training begins.
_SHARE_WITH_ROOM = 0.9
# Of conversations at their first retrieval, those that may have read negatives before.
_SHARE_MISLED_AT_FIRST = 0.25


class GroupAssembler:
    """Builds memory groups of one shape."""

    def __init__(self, dataset: TextDataset, shape: BatchShape):
        """Checks the shape, and the neediest of the given questions.

        Raises:
            ConfigError: if the shape does not fit the dataset.
        """
        self._dataset, self._shape = dataset, shape
        self._sources = list(dataset.sources.values())
        fraction = shape.answer_fraction
        if fraction is None:
            fraction = dataset.data.answer_fraction
        self._answer_fractions = [
            fraction if name in dataset.answered else 0.0 for name in dataset.sources
        ]
        self._alignment = dataset.memory.pooling_kernel_size
        self._row_tokens = dataset.data.row_tokens
        if self._row_tokens % self._alignment:
            raise ConfigError(
                f"row_tokens ({self._row_tokens}) must be a multiple of "
                f"memory.pooling_kernel_size ({self._alignment})."
            )
        if shape.memory_tokens % self._row_tokens:
            raise ConfigError(
                f"memory_tokens ({shape.memory_tokens}) must be a multiple of row_tokens "
                f"({self._row_tokens})."
            )
        self._num_rows = shape.memory_tokens // self._row_tokens
        self._max_documents = shape.memory_tokens // self._alignment
        lengths = dataset.parts.lengths[dataset.distractors]
        average = np.mean(packing.aligned(lengths + 1, self._alignment)) if len(lengths) else 1
        num_drawn = int(_DRAWN_SHARE * shape.memory_tokens / average) + 1
        self._num_drawn = min(num_drawn, len(lengths))
        self._check_active_tokens()

    def assemble(self, chosen: np.ndarray, rng: np.random.Generator) -> TrainingBatch:
        """Returns one group: memory `[R, S]`, active `[B, T]`, positives `[B, M]`.

        Should the documents of a question find no room, another question takes its place.

        Args:
            chosen: `[B, 2]` source and number in it of each question.
            rng: source of randomness.

        Raises:
            ConfigError: if no question finds room for its documents, or `id_space` is too small.
        """
        queries, memory, parts, ids = self._fill(chosen, rng)
        ids_of = dict(zip(parts.tolist(), ids.tolist(), strict=True))
        fractions = [self._answer_fractions[source] for source in chosen[:, 0]]
        drawn = list(zip(queries, fractions, strict=True))
        placed = [pair for pair in drawn if _is_placed(pair[0], ids_of)]
        self._require_room(len(placed) > 0)
        drawn = [
            pair if _is_placed(pair[0], ids_of) else placed[row % len(placed)]
            for row, pair in enumerate(drawn)
        ]
        column = {part: index for index, part in enumerate(ids_of)}
        positives = np.zeros((len(queries), self._max_documents), np.bool_)
        asked = []
        for row, (query, fraction) in enumerate(drawn):
            step = choose_step(query.question, len(query.hops), fraction, rng)
            sought = query.hops if step is None else [query.hops[step]]
            positives[row, [column[part] for hop in sought for part in hop]] = True
            asked.append(self._asked(*self._misled(query, step, ids_of, rng), ids_of))
        examples = build_examples(self._dataset.builder, asked, self._shape.active_tokens)
        return TrainingBatch(memory, *examples, positives)

    def check_room(self, chosen: np.ndarray, rng: np.random.Generator) -> None:
        """Assembles a group's memory to see whether such groups find room.

        Raises:
            ConfigError: if the documents of too many of the questions do not.
        """
        queries, _, parts, _ = self._fill(chosen, rng)
        present = set(parts.tolist())
        placed = sum(_is_placed(query, present) for query in queries)
        self._require_room(placed >= _SHARE_WITH_ROOM * len(queries))

    def _misled(
        self, query: Query, step: int | None, present: Container[int], rng: np.random.Generator
    ) -> tuple[Query, int | None]:
        """A conversation that has also read some of the negatives that are in memory.

        They are among the originals of any round before the step, or, of some conversations that
        have read nothing yet, a first round of their own, after which the right ones are named.
        """
        most = self._shape.read_negatives
        if not most or (step == 0 and rng.random() >= _SHARE_MISLED_AT_FIRST):
            return query, step
        negatives = [part for part in query.negatives if part in present]
        wrong = rng.permutation(negatives)[: int(rng.integers(most + 1))].tolist()
        if not wrong:
            return query, step
        if step == 0:
            return query._replace(hops=[wrong, *query.hops]), 1
        hops = [list(hop) for hop in query.hops]
        read = hops[:step]
        for part in wrong:
            hop = read[int(rng.integers(len(read)))]
            hop.insert(int(rng.integers(len(hop) + 1)), part)
        return query._replace(hops=hops), step

    def _asked(self, query: Query, step: int | None, ids_of: Mapping[int, int]) -> Asked:
        parts = self._dataset.parts
        hops = [[Source(ids_of[part], parts[part]) for part in hop] for hop in query.hops]
        return Asked(query.question, hops, step)

    def _check_active_tokens(self) -> None:
        """Builds the neediest examples, so that no run fails halfway at one of them."""
        largest_ids = defaultdict(lambda: self._dataset.data.id_space - 1)
        asked = self._shape.mixture or self._dataset.sources
        sources = self._dataset.sources.items()
        for (name, source), fraction in zip(sources, self._answer_fractions, strict=True):
            if name in asked and isinstance(source, GivenQueries):
                needy = [self._asked(*x, largest_ids) for x in _neediest(source, fraction > 0)]
                build_examples(self._dataset.builder, needy, self._shape.active_tokens)

    def _fill(
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[Query], TokenBlock, np.ndarray, np.ndarray]:
        """Draws the questions, and fills a memory `[R, S]` for them.

        Returns:
            The questions, the memory, and the parts and the ids of its documents 1, 2, ...
        """
        draws = random.Random(int(rng.integers(2**63)))
        queries = [self._sources[source].draw(index, draws) for source, index in chosen.tolist()]
        candidates = self._candidates(queries, rng)
        num_ids = self._dataset.data.id_space - 1
        ids = 1 + rng.choice(num_ids, size=min(num_ids, len(candidates)), replace=False)
        usable = candidates[: len(ids)]
        wraps = self._dataset.builder.document_wraps(ids.tolist())
        lengths = self._dataset.parts.lengths[usable] + [len(x) + len(y) for x, y in wraps]
        rows = packing.assign_rows(lengths, self._num_rows, self._row_tokens, self._alignment)
        if len(ids) < len(candidates) and (rows != packing.UNPLACED).all():
            raise ConfigError(
                f"id_space ({self._dataset.data.id_space}) is too small for the documents of a "
                f"memory of {self._shape.memory_tokens} tokens; raise id_space."
            )
        order, starts = packing.shuffle_places(
            rows, lengths, self._num_rows, self._row_tokens, self._alignment, rng
        )
        pieces = []
        for index, part in zip(order.tolist(), usable[order].tolist(), strict=True):
            start, end = wraps[index]
            pieces += [start, self._dataset.parts[part], end]
        memory = packing.fill_rows(
            pieces,
            lengths[order],
            starts,
            self._num_rows,
            self._row_tokens,
            self._dataset.builder.tokenizer.pad_id,
        )
        return queries, memory, usable[order], ids[order]

    def _candidates(self, queries: Sequence[Query], rng: np.random.Generator) -> np.ndarray:
        """Parts by priority: positives, negatives, distractors."""
        given = dict.fromkeys(part for query in queries for hop in query.hops for part in hop)
        most = self._dataset.data.negatives_per_question
        for query in queries:
            if most and len(query.negatives):
                given.update(dict.fromkeys(rng.permutation(query.negatives)[:most].tolist()))
        drawn = rng.choice(self._dataset.distractors, size=self._num_drawn, replace=False)
        required = np.fromiter(given, int)
        return np.concatenate([required, drawn[~np.isin(drawn, required)]])

    def _require_room(self, is_enough: bool) -> None:
        if not is_enough:
            raise ConfigError(
                f"the documents that a group's {self._shape.queries_per_group} questions need do "
                f"not fit in memory_tokens ({self._shape.memory_tokens}); raise memory_tokens or "
                "lower queries_per_group."
            )


def _is_placed(query: Query, present: Container[int]) -> bool:
    return all(part in present for hop in query.hops for part in hop)


def _neediest(source: GivenQueries, with_answers: bool) -> Iterator[tuple[Query, int | None]]:
    """Questions that need the most active tokens, with the step at which they do."""
    queries = [source.draw(index, random.Random(0)) for index in range(len(source))]
    most_parts = max(queries, key=lambda query: sum(map(len, query.hops)))
    yield most_parts, len(most_parts.hops) - 1
    answered = [query for query in queries if query.question.answers]
    if with_answers and answered:
        yield max(answered, key=lambda query: len(query.question.answers[0])), None
