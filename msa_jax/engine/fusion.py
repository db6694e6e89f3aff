"""One ranking of documents with one probability, from routers, words and the second look.

Every source lists documents with scores on a scale of its own. A linear model of these scores,
against the spread of their list, and of the ranks makes one score of them; a logistic model of that
score and of what competes with it makes a probability, which means the same over small and large
memories. Both are fitted on questions that the routers were not trained on, and are
kept with the weights as `ranking.json`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.engine.ranking import LISTED
from msa_jax.fields import Number, check_fields
from msa_jax.typing import Float, Int

FILE = "ranking.json"
# Of each list, the first documents are candidates.
_CANDIDATES = 32
# A score that competes with nothing.
_NOTHING = -30.0


class Listing(NamedTuple):
    """Documents that one source found, best first.

    Attributes:
        ids: of the documents, each once.
        scores: on the source's own scale, descending.
    """

    ids: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]


class Evidence(NamedTuple):
    """What the sources say of the candidates of a question.

    Attributes:
        ids: of the candidates, the best by routers and words first.
        features: what the lists say of each (`list_features`).
        logits: of the look at the first of them; fewer than candidates if not all were looked at.
    """

    ids: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n 4"]
    logits: Float[np.ndarray, " looked"]


EMPTY = Listing(np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclasses.dataclass(frozen=True)
class Weights:
    """A fitted ranking: of documents that were looked at, or of those that were not.

    Attributes:
        router_score: factor of the routers' score, in standard deviations of their list.
        router_rank: factor of log(1 + rank) in the routers' list, the best with rank 0.
        words_score: factor of the score by words, in standard deviations of that list.
        words_rank: factor of log(1 + rank) in that list.
        look: factor of the look's logit; 0 without a look.
        own: factor of a document's fused score in the logit of its probability.
        rest: factor of what competes with it: the log of the summed exponentials of all other
            documents' scores but the best of them, which may be right as well.
        bias: added to that logit.
    """

    router_score: Number
    router_rank: Number
    words_score: Number
    words_rank: Number
    look: Number
    own: Number
    rest: Number
    bias: Number

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How a model's sources become one ranking.

    Attributes:
        listed: for documents that were not looked at, by routers and words alone.
        looked: for documents that were.
    """

    listed: Weights
    looked: Weights

    def candidates(self, routers: Listing, words: Listing) -> Evidence:
        """The best documents of two lists, best first, before a look at any of them."""
        best = [*routers.ids[:_CANDIDATES].tolist(), *words.ids[:_CANDIDATES].tolist()]
        ids = np.array(list(dict.fromkeys(best)), np.int64)
        features = list_features(ids, routers, words)
        order = np.argsort(-features @ _factors(self.listed), kind="stable")
        return Evidence(ids[order], features[order], np.zeros(0, np.float32))

    def ranking(self, evidence: Evidence) -> Listing:
        """Documents with their probabilities, best first.

        Those that were not looked at keep their order, after all that were, and are no more
        probable than the last of these.
        """
        ids, features, logits = evidence
        count = len(logits)
        scores = features[:count] @ _factors(self.looked) + self.looked.look * logits
        looked = _ranked(ids[:count], scores, self.looked)
        listed = _ranked(ids, features @ _factors(self.listed), self.listed)
        rest = listed.scores[count:]
        lowest = looked.scores[-1] if count else 1.0
        return Listing(
            np.concatenate([looked.ids, ids[count:]]),
            np.concatenate([looked.scores, np.minimum(rest, lowest)]),
        )


def list_features(
    ids: Int[np.ndarray, " n"], routers: Listing, words: Listing
) -> Float[np.ndarray, "n 4"]:
    """What the lists say of documents, in the order of the first fields of `Weights`."""
    columns = [column for listing in (routers, words) for column in _of_list(ids, listing)]
    return np.stack(columns, axis=1) if len(ids) else np.zeros((0, 4))


def _of_list(
    ids: Int[np.ndarray, " n"], listing: Listing
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Standardised scores and logarithms of ranks."""
    ranks = {document: rank for rank, document in enumerate(listing.ids[:LISTED].tolist())}
    at = np.array([ranks.get(document, LISTED) for document in ids.tolist()], int)
    if len(ranks) < 2:
        return np.zeros(len(ids)), np.log1p(at)
    scores = np.asarray(listing.scores[:LISTED], np.float64)
    scores = (scores - scores.mean()) / (scores.std() + 1e-6)
    return scores[np.minimum(at, len(scores) - 1)], np.log1p(at)


def _factors(weights: Weights) -> Float[np.ndarray, " 4"]:
    return np.array(
        [weights.router_score, weights.router_rank, weights.words_score, weights.words_rank]
    )


def _ranked(
    ids: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> Listing:
    """Documents by score, of equal ones the first first, with their probabilities."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    logits = weights.own * scores + weights.rest * competition(scores) + weights.bias
    # More rivals never make a document more probable than a better one.
    return Listing(ids[order], np.minimum.accumulate(_sigmoid(logits)).astype(np.float32))


def competition(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Of each of some scores, descending: log-sum-exp of all others but the best of these."""
    without = np.full(len(scores), _NOTHING)
    for i in range(len(scores)):
        others = np.delete(scores, i)[1:]
        if len(others):
            without[i] = np.logaddexp.reduce(others)
    return without


def _sigmoid(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.exp(-np.logaddexp(0, -x))


def save_fusion(folder: str | os.PathLike, fusion: Fusion) -> None:
    """Writes how a model ranks, beside its weights."""
    path = Path(folder) / FILE
    temporary = path.with_name(f".{FILE}.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(fusion), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load_fusion(folder: str | os.PathLike) -> Fusion | None:
    """Reads how a model ranks; None if its folder does not say.

    Raises:
        ConfigError: if `ranking.json` is not what `save_fusion` writes.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        values: Mapping = json.loads(path.read_text(encoding="utf-8"))
        return Fusion(**{name: Weights(**values[name]) for name in ("listed", "looked")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say how the model ranks ({error}); restore it."
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
