"""Which documents are in the memory of each question, at every size.

A memory holds the question's positives and, up to its size, parts that are drawn at random: first
of the question's own pool, where it is exhausted of the next tier, and so on. Parts of another tier
whose document has the title of a positive are left out, because they are near copies of it.

One random order of all parts serves every question: within a tier a question's memory is a stretch
of that order, which starts where the question says and goes round. So memories are nested, sizes
are exact to a part, and a memory of 100M tokens is a few numbers, from which devices make masks.
All depends on the seed, the documents and the question, and on no system that is measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.records import Question
from msa_jax.evaluation.corpus import Corpus
from msa_jax.typing import Array, Int, pytree

NO_TIER = -1


class Places(NamedTuple):
    """Where a system keeps parts, and what these are in the draw.

    Attributes:
        tier: of the part at each place; `NO_TIER` where there is none, or one that is never drawn.
        position: of the part in the random order of its tier.
        place_of: place of each part of the corpus; beyond the last for one that has none.
    """

    tier: Int[np.ndarray, " places"]
    position: Int[np.ndarray, " places"]
    place_of: Int[np.ndarray, " parts"]

    def on_device(self) -> Places:
        """With what `first_sizes` takes on the device; the rest is read on the host."""
        return self._replace(tier=jax.device_put(self.tier), position=jax.device_put(self.position))


@pytree
class Draw:
    """The memories of B questions at S sizes, for `first_sizes`.

    Attributes:
        tier_sizes: parts of each tier.
        starts: where each question's stretch of a tier starts.
        counts: how many parts it has.
        own: places of the positives, beyond the last to fill up.
        left_out: places that are in no memory of the question, likewise.
    """

    tier_sizes: Int[Array, " tiers"]
    starts: Int[Array, "B tiers"]
    counts: Int[Array, "B S tiers"]
    own: Int[Array, "B n"]
    left_out: Int[Array, "B m"]


@jax.jit
def first_sizes(
    tier: Int[Array, " places"], position: Int[Array, " places"], draw: Draw
) -> Int[Array, "B places"]:
    """The smallest of the sizes (0, 1, ...) at which the part at a place is in a question's memory.

    S for what is in none of them, so that `first_sizes(...) <= s` is the memory of size s.
    """
    num_sizes = draw.counts.shape[1]
    drawn = jnp.maximum(tier, 0)
    offset = (position - draw.starts[:, drawn]) % draw.tier_sizes[drawn]
    first = jnp.zeros(offset.shape, jnp.int8)
    for size in range(num_sizes):
        first += offset >= draw.counts[:, size, drawn]
    first = jnp.where(tier == NO_TIER, num_sizes, first).astype(jnp.int8)
    rows = jnp.arange(len(draw.own))[:, None]
    first = first.at[rows, draw.left_out].set(num_sizes, mode="drop")
    return first.at[rows, draw.own].set(0, mode="drop")


class Memories:
    """The memories of a set of questions.

    Attributes:
        corpus: the documents.
        questions: the questions.
        sizes: of memory, in tokens, ascending.
        documents: of each question, its positives as indexes of documents.
        own: of each question, the parts of its positives.
        num_parts: parts in the memory of each question at each size.
    """

    num_parts: Int[np.ndarray, "Q S"]

    def __init__(
        self,
        corpus: Corpus,
        questions: Sequence[Question],
        tiers: Sequence[Sequence[str]],
        sizes: Sequence[int],
        seed: int,
    ):
        """Draws.

        Args:
            corpus: the documents.
            questions: whose positives are in the corpus.
            tiers: pools to draw from, in this order.
            sizes: of memory, in tokens, ascending.
            seed: of the draw.

        Raises:
            ConfigError: if the positives of a question do not fit into the smallest memory, or
                there are too few documents for the largest, or a pool or a positive is not there.
        """
        self.corpus, self.questions, self.sizes = corpus, questions, tuple(sizes)
        self.documents = [_positives(corpus, question) for question in questions]
        _check_held(corpus, questions)
        order = np.argsort(corpus.document, kind="stable")
        self.own = [_parts_of(corpus, order, documents) for documents in self.documents]
        self._tier = _tiers(corpus, tiers)
        random = np.random.default_rng(seed).permutation(len(corpus))
        self._members = [random[self._tier[random] == tier] for tier in range(len(tiers))]
        self._position = np.zeros(len(corpus), np.int64)
        for members in self._members:
            self._position[members] = np.arange(len(members))
        self._tier_sizes = np.array([max(1, len(members)) for members in self._members])
        # Twice, to look beyond the end of the order.
        self._sums = [
            np.concatenate([[0], np.cumsum(np.tile(corpus.lengths[members], 2))])
            for members in self._members
        ]
        self._left_out = self._near_copies()
        draws = [np.random.default_rng((seed, zlib.crc32(q.id.encode()))) for q in questions]
        self._starts = np.array([rng.integers(self._tier_sizes) for rng in draws])
        self._counts = np.zeros((len(questions), len(sizes), len(tiers)), np.int64)
        self.num_parts = np.zeros((len(questions), len(sizes)), np.int64)
        for question in range(len(questions)):
            self._fill(question)

    def places(self, part_at: Int[np.ndarray, " places"]) -> Places:
        """For a system that keeps part `part_at[i]` at place i, and nothing where that is -1."""
        place_of = np.full(len(self.corpus), len(part_at))
        (used,) = np.nonzero(part_at >= 0)
        place_of[part_at[used]] = used
        tier = np.where(part_at >= 0, self._tier[part_at], NO_TIER)
        return Places(tier.astype(np.int8), self._position[part_at].astype(np.int32), place_of)

    def draw(self, questions: Sequence[int], places: Places, sizes: Sequence[int]) -> Draw:
        """What `first_sizes` needs for some questions and, by index, some sizes."""

        def padded(parts: list[np.ndarray]) -> np.ndarray:
            width = 1 << max(len(x) for x in parts).bit_length()  # Few shapes.
            out = np.full((len(parts), width), len(places.tier), np.int32)
            for row, own in zip(out, parts, strict=True):
                row[: len(own)] = places.place_of[own]
            return out

        questions = np.asarray(questions)
        return Draw(
            self._tier_sizes.astype(np.int32),
            self._starts[questions].astype(np.int32),
            self._counts[questions][:, list(sizes)].astype(np.int32),
            padded([self.own[q] for q in questions]),
            padded([self._left_out[q] for q in questions]),
        )

    def in_some(self, size: int) -> np.ndarray:
        """`[parts]` whether some question's memory of this size, by index, may hold each part."""
        found = np.zeros(len(self.corpus), np.bool_)
        for tier, members in enumerate(self._members):
            count = len(members)
            starts, counts = self._starts[:, tier], self._counts[:, size, tier]
            edges = np.zeros(2 * count + 1, np.int64)
            np.add.at(edges, starts, counts > 0)
            np.add.at(edges, starts + counts, -(counts > 0).astype(int))
            covered = np.cumsum(edges)[:-1] > 0
            found[members] = covered[:count] | covered[count:]
        found[np.concatenate(self.own)] = True
        return found

    def _near_copies(self) -> list[np.ndarray]:
        """Of each question, parts of other tiers than the first under the title of a positive."""
        titles = [title.casefold().strip() for title in self.corpus.titles]
        wanted = {titles[d] for documents in self.documents for d in documents} - {""}
        parts_with: dict[str, list[int]] = {}
        for part in np.flatnonzero(self._tier > 0):
            title = titles[self.corpus.document[part]]
            if title in wanted:
                parts_with.setdefault(title, []).append(part)
        left_out = []
        for documents, own in zip(self.documents, self.own, strict=True):
            alike = [part for d in documents for part in parts_with.get(titles[d], ())]
            left_out.append(np.setdiff1d(np.array(alike, int), own))
        return left_out

    def _fill(self, question: int) -> None:
        """Counts the parts of every tier that fit, size by size."""
        own, lengths = self.own[question], self.corpus.lengths
        needed = int(lengths[own].sum())
        apart = np.concatenate([own, self._left_out[question]])
        apart = apart[self._tier[apart] >= 0]
        start = self._starts[question]
        offsets = (self._position[apart] - start[self._tier[apart]]) % self._tier_sizes[
            self._tier[apart]
        ]
        for size, memory_tokens in enumerate(self.sizes):
            room = memory_tokens - needed
            if room < 0:
                raise ConfigError(
                    f"question {self.questions[question].id!r}: its positives have {needed} "
                    f"tokens, more than a memory of {memory_tokens}; raise memory_tokens."
                )
            num_drawn = 0
            for tier, members in enumerate(self._members):
                here = self._tier[apart] == tier
                count, used = _stretch(
                    self._sums[tier],
                    len(members),
                    start[tier],
                    room,
                    offsets[here],
                    lengths[apart[here]],
                )
                self._counts[question, size, tier] = count
                num_drawn += count - int((offsets[here] < count).sum())
                room -= used
                if count < len(members):
                    break
            else:
                raise ConfigError(
                    f"memory_tokens {memory_tokens} is more than all documents have for question "
                    f"{self.questions[question].id!r} ({memory_tokens - room} tokens); leave it "
                    "out or give more documents."
                )
            self.num_parts[question, size] = num_drawn + len(own)


def _stretch(
    sums: Int[np.ndarray, " n"],
    num_members: int,
    start: int,
    room: int,
    offsets: Int[np.ndarray, " m"],
    lengths: Int[np.ndarray, " m"],
) -> tuple[int, int]:
    """The longest stretch of a tier that fits, and its tokens.

    Args:
        sums: tokens before each member, of the order twice.
        num_members: of the tier.
        start: first of the stretch.
        room: tokens that it may have.
        offsets: of members, from the start, that take no room, since they are in memory anyway or
            never.
        lengths: of these.
    """

    def fitting(room: int) -> int:
        stop = int(np.searchsorted(sums, sums[start] + room, side="right")) - 1
        return min(stop - start, num_members)

    free, count = 0, fitting(room)
    for i in np.argsort(offsets, kind="stable"):
        if offsets[i] > count:
            break
        free += int(lengths[i])
        count = fitting(room + free)
    return count, int(sums[start + count] - sums[start]) - free


def _positives(corpus: Corpus, question: Question) -> list[int]:
    unknown = [key for key in question.positive_ids if key not in corpus.document_of]
    if unknown:
        raise ConfigError(
            f"question {question.id!r} needs {unknown[0]!r}, which is no document of the corpus."
        )
    return list(dict.fromkeys(corpus.document_of[key] for key in question.positive_ids))


def _check_held(corpus: Corpus, questions: Sequence[Question]) -> None:
    """Refuses questions about documents without text, which nothing could ever find."""
    num_parts = np.bincount(corpus.document, minlength=len(corpus.titles))
    for question in questions:
        for key in question.positive_ids:
            if not num_parts[corpus.document_of[key]]:
                raise ConfigError(
                    f"question {question.id!r} needs {key!r}, of which no text is in the corpus."
                )


def _parts_of(corpus: Corpus, order: np.ndarray, documents: Sequence[int]) -> np.ndarray:
    first, last = (
        np.searchsorted(corpus.document, documents, side, sorter=order)
        for side in ("left", "right")
    )
    return np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)])


def _tiers(corpus: Corpus, tiers: Sequence[Sequence[str]]) -> Int[np.ndarray, " parts"]:
    tier_of_pool = np.full(len(corpus.pools), NO_TIER)
    for tier, names in enumerate(tiers):
        for name in names:
            if name not in corpus.pools:
                raise ConfigError(
                    f"there is no pool {name!r} among the documents; known pools: "
                    f"{', '.join(corpus.pools)}."
                )
            tier_of_pool[corpus.pools.index(name)] = tier
    return tier_of_pool[corpus.pool]
