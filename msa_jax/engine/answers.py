"""What is asked for, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from msa_jax.config import nested
from msa_jax.engine.interleave import InterleaveConfig, Round
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.fields import CountOrZero, Number, check_fields
from msa_jax.memory.store import Passage


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """How a question is answered.

    Attributes:
        interleave: how much is read before the answer; a `router_temperature` or `margin` of None
            is that of the model (`LoadedModel.suit`).
        sampling: how names and the answer are drawn.
        filters: metadata that documents must have (`Store.select`); None for all documents.
        abstain_below: no answer where no document scores at least this (`Found.score`); None to
            answer always.
        num_documents: how many documents an answer lists.
        looks: documents that a second look is taken at in each round; 0 for none, and None for as
            many as suit the device (`default_looks`). Without effect if the model has no look.
    """

    interleave: InterleaveConfig = nested(InterleaveConfig)
    sampling: SamplingConfig = nested(SamplingConfig)
    filters: Mapping[str, Any] | None = None
    abstain_below: Number | None = None
    num_documents: CountOrZero = 5
    looks: CountOrZero | None = None

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Found:
    """A document that was retrieved, or the part of a long one that was.

    Attributes:
        id: of the part; what the model calls it.
        key: of the document.
        score: probability that it answers the question, where the model has one ranking of routers,
            words and look (`Fusion`); otherwise the mean over router layers (`rank_documents`). Of
            the first round that listed it; -inf if none did.
        text: of the part.
        was_read: whether its original was read before the answer.
    """

    id: int
    key: str
    title: str
    text: str
    metadata: Mapping[str, Any]
    score: float
    was_read: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        text: the answer; "" if the engine abstained.
        abstained: whether no document scored enough.
        documents: what the answer rests on: those that were read, then the best of the others.
        rounds: what was routed to and named, round by round.
        finished: why the answer ended: "end", "stop", "length", or "abstained".
        tokens: of the answer.
        seconds: of each stage.
    """

    question: str
    text: str
    abstained: bool
    documents: tuple[Found, ...]
    rounds: tuple[Round, ...]
    finished: str
    tokens: int
    seconds: Mapping[str, float]


def found(passage: Passage, score: float, was_read: bool = False) -> Found:
    """A passage of the bank as a document that was retrieved."""
    return Found(
        passage.id, passage.key, passage.title, passage.text, passage.metadata, score, was_read
    )
