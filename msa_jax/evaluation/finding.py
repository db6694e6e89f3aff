"""One ranking of several, as the suite measures it: routers, words, and a second look."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from tqdm import tqdm

from msa_jax.engine.conversation import Find
from msa_jax.engine.finding import Finder
from msa_jax.engine.fusion import EMPTY, Evidence, Listing
from msa_jax.engine.loading import LoadedModel
from msa_jax.engine.look import Look
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories
from msa_jax.typing import PyTree

# All candidates of a question, at whatever the device: a measurement is of the ranking.
_LOOKS = 64
# Questions that are looked at together.
_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class SuiteFinder:
    """Makes one ranking of the parts that several systems have listed.

    Attributes:
        loaded: the model, with a look and a fusion.
        params: its parameters, on the device.
        corpus: whose parts these are.
    """

    loaded: LoadedModel
    params: PyTree
    corpus: Corpus

    @cached_property
    def _look(self) -> Look:
        return Look(self.loaded.model, self.params, self.loaded.look, self.loaded.builder)

    def gather(
        self,
        questions: Sequence[str],
        routers: Sequence[Listing] | None,
        words: Sequence[Listing] | None,
        look: bool,
    ) -> list[Evidence]:
        """What the sources say of the parts that are candidates for each question.

        Args:
            questions: in words.
            routers: parts that the routers listed for each question, or another retriever in their
                place; None for none.
            words: parts that were found by words; None for none.
            look: whether to look at the candidates.
        """
        looked = (self._look, _LOOKS) if look else (None, 0)
        finder = Finder(self.loaded.fusion, looked[0], self._texts, looked[1])
        nothing = [EMPTY] * len(questions)
        lists = (questions, routers or nothing, words or nothing)
        found: list[Evidence] = []
        starts = range(0, len(questions), _AT_ONCE)
        for start in tqdm(starts, "look" if look else "fuse", unit="batch", leave=False):
            found += finder.gather(*(own[start : start + _AT_ONCE] for own in lists))
        return found

    def over_ids(
        self, memories: Memories, questions: Sequence[int], words: Sequence[Listing]
    ) -> Find:
        """What `Library.find` takes, of some questions of a set; documents go by their ids.

        Args:
            memories: of the set.
            questions: of the set, by index, in the order in which they are asked.
            words: parts that were found by words, for all questions of the set.
        """

        def find(rows: Sequence[int], routers: Sequence[Listing]) -> list[Listing]:
            some = [questions[row] for row in rows]
            evidence = self.gather(
                [memories.questions[question].question for question in some],
                [Listing(self.corpus.parts_called(own.ids), own.scores) for own in routers],
                [words[question] for question in some],
                look=True,
            )
            found = map(self.loaded.fusion.ranking, evidence)
            return [Listing(self.corpus.ids[own.ids], own.scores) for own in found]

        return find

    def _texts(self, parts: Sequence[int]) -> list[np.ndarray]:
        return [self.corpus.text_tokens(part).astype(np.int32) for part in parts]


def judged(
    corpus: Corpus, evidence: Evidence, documents: Sequence[int]
) -> dict[str, list[list[float]] | list[float] | list[bool] | int]:
    """Evidence as a line of JSON, with which candidates are right (`msa_jax.engine.fitting`).

    Args:
        corpus: whose parts the candidates are.
        evidence: of a question.
        documents: its positives.
    """
    return {
        "features": np.round(evidence.features, 4).tolist(),
        "logits": np.round(evidence.logits.astype(float), 4).tolist(),
        "right": np.isin(corpus.document[evidence.ids], documents).tolist(),
        "positives": len(documents),
    }
