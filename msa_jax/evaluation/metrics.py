"""Measures of rankings and answers, of one question each, and how sure their means are."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.typing import Float, Int

# What a positive that was not ranked gets for a rank.
NOT_RANKED = np.iinfo(np.int64).max
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES = 1000


def normalize_answer(text: str) -> str:
    """Text as SQuAD compares it: lower case, without ASCII punctuation, articles and extra space.

    Punctuation goes first, so that words around it grow together ("a.b" is "ab", no article).
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Whether an answer is one of those that are accepted, normalised."""
    return float(normalize_answer(answer) in set(map(normalize_answer, accepted)))


def f1_score(answer: str, accepted: Sequence[str]) -> float:
    """Overlap in words with the closest of the accepted answers: SQuAD's F1."""
    return max((_overlap(answer, one) for one in accepted), default=0.0)


def _overlap(answer: str, accepted: str) -> float:
    ours, theirs = (normalize_answer(text).split() for text in (answer, accepted))
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    # 2 PR / (P + R) with P = common / ours and R = common / theirs.
    return 2 * common / (len(ours) + len(theirs))


class SetScores(NamedTuple):
    """How well a set of documents agrees with the one that is needed; each in [0, 1].

    Attributes:
        precision: share of the documents that are needed.
        recall: share of the needed ones that are there.
        f1: harmonic mean of the two.
    """

    precision: float
    recall: float
    f1: float


def supporting_documents(read: Collection[Hashable], positives: Collection[Hashable]) -> SetScores:
    """How well the documents that were read for an answer agree with those that it needs.

    A document that was read twice counts once. Nothing read, or nothing needed, scores 0.

    Args:
        read: documents; ids, or anything else that tells them apart.
        positives: documents that are needed, likewise.
    """
    ours, theirs = set(read), set(positives)
    common = len(ours & theirs)
    # 2 PR / (P + R), as in `_overlap`.
    sizes = len(ours), len(theirs), (len(ours) + len(theirs)) / 2
    return SetScores(*(common / max(size, 1) for size in sizes))


def ranks_of(
    ranking: Int[np.ndarray, " n"], documents: Sequence[int]
) -> Int[np.ndarray, " positives"]:
    """Rank of each document in a ranking of documents, from 1; `NOT_RANKED` where it is not there.

    A document that occurs more than once, by several of its parts, is as good as the best of them;
    the others keep their places.
    """
    found = (np.flatnonzero(ranking == document) for document in documents)
    return np.array([at[0] + 1 if len(at) else NOT_RANKED for at in found], np.int64)


def recall_at(ranks: Int[np.ndarray, " positives"], count: int) -> float:
    """Share of the positives that are among the first `count`."""
    return float(np.mean(ranks <= count))


def all_at(ranks: Int[np.ndarray, " positives"], count: int) -> float:
    """Whether all positives are among the first `count`."""
    return float(np.all(ranks <= count))


def reciprocal_rank(ranks: Int[np.ndarray, " positives"], count: int) -> float:
    """One over the rank of the best positive, 0 if it is not among the first `count`."""
    best = int(ranks.min())
    return 1.0 / best if best <= count else 0.0


def chance_recall(num_parts: int, positive_parts: int, count: int) -> float:
    """Probability that `count` parts drawn from `num_parts` hold one of some positive ones."""
    drawn = np.arange(min(count, num_parts))
    missed = np.maximum(num_parts - positive_parts - drawn, 0) / (num_parts - drawn)
    return float(1.0 - np.prod(missed))


def bootstrap_interval(
    values: Float[np.ndarray, " n"], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Where the mean of values lies if other questions of the same kind had been asked.

    Percentiles of the means of 1,000 samples of n values, drawn with replacement; the same values
    give the same interval.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), _RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile(counts @ np.asarray(values, float) / len(values), [tail, 1 - tail])
    return float(low), float(high)
