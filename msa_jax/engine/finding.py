"""Finds documents for questions: what the routers and the words list, and a second look at that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from msa_jax.engine.conversation import Find
from msa_jax.engine.fusion import Evidence, Fusion, Listing
from msa_jax.engine.loading import LoadedModel
from msa_jax.engine.look import Look
from msa_jax.engine.ranking import LISTED
from msa_jax.memory.store import Store

# All candidates on an accelerator, where a look takes a fraction of a millisecond; on two CPU cores
# it takes some tenths of a second.
_LOOKS, _LOOKS_ON_CPU = 64, 4


def default_looks() -> int:
    """Documents to look at for a question where nobody says how many."""
    return _LOOKS_ON_CPU if jax.default_backend() == "cpu" else _LOOKS


@dataclasses.dataclass(frozen=True)
class Finder:
    """Makes one ranking of what several sources have found.

    Attributes:
        fusion: of the model.
        look: of the model; None to rank by routers and words alone.
        texts: text tokens of the documents with these ids.
        looks: documents to look at for a question.
        known: logits of questions and documents that were looked at.
    """

    fusion: Fusion
    look: Look | None
    texts: Callable[[Sequence[int]], Sequence[np.ndarray]]
    looks: int
    known: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    def find(
        self, questions: Sequence[str], routers: Sequence[Listing], words: Sequence[Listing]
    ) -> list[Listing]:
        """Ranks documents for each question, with probabilities; takes what `gather` takes."""
        return [self.fusion.ranking(own) for own in self.gather(questions, routers, words)]

    def gather(
        self, questions: Sequence[str], routers: Sequence[Listing], words: Sequence[Listing]
    ) -> list[Evidence]:
        """Chooses candidates for each question and looks at the best of them.

        Args:
            questions: in words.
            routers: what the routers listed for each question.
            words: what each question's words found.
        """
        candidates = [self.fusion.candidates(*own) for own in zip(routers, words, strict=True)]
        if self.look is None or not self.looks:
            return candidates
        looked = [
            [(question, document) for document in one.ids[: self.looks].tolist()]
            for question, one in zip(questions, candidates, strict=True)
        ]
        self._look_at(dict.fromkeys(pair for pairs in looked for pair in pairs))
        return [
            one._replace(logits=np.array([self.known[pair] for pair in pairs], np.float32))
            for one, pairs in zip(candidates, looked, strict=True)
        ]

    def _look_at(self, pairs: Iterable[tuple[str, int]]) -> None:
        """Looks at those of some pairs that have not been looked at in an earlier round."""
        new = [pair for pair in pairs if pair not in self.known]
        wanted = list(dict.fromkeys(document for _, document in new))
        text_of = dict(zip(wanted, self.texts(wanted), strict=True)) if wanted else {}
        logits = self.look.logits([(text_of[document], question) for question, document in new])
        self.known.update(zip(new, logits.tolist(), strict=True))


class Finding:
    """What a model with one ranking finds in a bank; nothing for a model without."""

    def __init__(
        self,
        loaded: LoadedModel,
        store: Store,
        texts: Callable[[Sequence[int]], Sequence[np.ndarray]],
        mesh: Mesh | None = None,
    ):
        """Takes a model and a bank.

        Args:
            loaded: the model, with stacked layers: a loop compiles fast for every length of a look.
            store: the bank.
            texts: text tokens of the parts with these ids.
            mesh: devices that the parameters are placed on; None for one device.
        """
        self._fusion, self._store, self._texts = loaded.fusion, store, texts
        self._look = None
        if None not in (loaded.look, loaded.fusion):
            self._look = Look(loaded.model, loaded.params, loaded.look, loaded.builder, mesh)
        self._background = ThreadPoolExecutor(1, "words")

    def start(
        self, questions: Sequence[str], filters: Mapping[str, Any] | None, looks: int | None
    ) -> Find | None:
        """Starts the search by words, beside whatever the caller does next.

        Args:
            questions: in words.
            filters: as in `AskConfig`.
            looks: as in `AskConfig`.

        Returns:
            What ranks documents for some of the questions; None if the routers rank alone.
        """
        if self._fusion is None:
            return None
        allowed = None if filters is None else self._store.select(filters)
        words = self._background.submit(self._store.words.search, questions, LISTED, allowed)
        looks = default_looks() if looks is None else looks
        finder = Finder(self._fusion, self._look, self._texts, looks)

        def find(rows: Sequence[int], routers: Sequence[Listing]) -> list[Listing]:
            found = words.result()
            own = [Listing(*found[row]) for row in rows]
            return finder.find([questions[row] for row in rows], routers, own)

        return find

    def close(self) -> None:
        """Waits for a search that may be under way."""
        self._background.shutdown()
