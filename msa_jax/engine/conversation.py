"""What comes of a question, round by round, and the documents that it is asked over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from msa_jax.engine.fusion import Listing
from msa_jax.engine.names import NameTable
from msa_jax.engine.ranking import rank_documents
from msa_jax.modules.state import Memory
from msa_jax.typing import Float, Int

# Questions by index, and what the routers have listed for each; returns what is found for each.
Find = Callable[[Sequence[int], Sequence[Listing]], Sequence[Listing]]


@dataclasses.dataclass(frozen=True)
class Round:
    """One prefill of a conversation, and what was named after it.

    Attributes:
        slots: documents that each router layer chose, best first, as memory numbers them; -1
            where there are fewer.
        ids: their ids; -1 likewise.
        scores: their scores; -inf likewise.
        named: ids that the model named, in its order; none in the round of the answer.
        found: the ranking of routers, words and look together, with probabilities; None where the
            routers rank alone, and in the round of the answer.
    """

    slots: Int[np.ndarray, "L k"]
    ids: Int[np.ndarray, "L k"]
    scores: Float[np.ndarray, "L k"]
    named: tuple[int, ...]
    found: Listing | None = None

    @functools.cached_property
    def routed(self) -> Listing:
        """Ids and scores of all documents that some layer chose, best first (`rank_documents`)."""
        return Listing(*rank_documents(self.ids, self.scores))

    @property
    def ranking(self) -> Listing:
        """What was found, with probabilities, or else `routed`, with mean scores."""
        return self.routed if self.found is None else self.found


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What came of a question.

    Attributes:
        question: as it was asked.
        answer: without white space around it.
        finished: "end" if the model ended the answer, "stop" if a stop text did, "length" if it
            was cut.
        documents: ids of the originals that the answer rests on, in the order they were read.
        rounds: in order; the last is that of the answer.
        answer_tokens: tokens of the answer, its end included.
        seconds: by stage, "prefill", "finding", "naming", "originals" and "answer"; each
            stage is of all questions in the batch at that time.
    """

    question: str
    answer: str
    finished: str
    documents: tuple[int, ...]
    rounds: tuple[Round, ...]
    answer_tokens: int
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Library:
    """The documents of a memory, as one moment has them.

    Attributes:
        memory: one group of encoded documents; None if there are none. A `doc_mask` has a row for
            each question, or one for all.
        ids_of: ids of these memory slots.
        originals: text tokens of the documents with these ids.
        names: documents that may be named, for `constrain="existing"`.
        find: what is found for these questions, by index, of which the routers have listed so
            much; None if the routers rank alone. Then a round names the best document that has
            not been read, or none.
    """

    memory: Memory | None
    ids_of: Callable[[Int[np.ndarray, " n"]], Int[np.ndarray, " n"]]
    originals: Callable[[Sequence[int]], Sequence[np.ndarray]]
    names: NameTable | None = None
    find: Find | None = None
