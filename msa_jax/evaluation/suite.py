"""Retrieval and answers against memory size on real text, with baselines and controls.

What is measured is written down at once, set by set and size by size, and what is there already is
not measured again: a run that was cut goes on, and several systems can be measured on several
machines, one after the other, in the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from msa_jax.checkpoint import look
from msa_jax.config import ConfigError
from msa_jax.data.records import Question
from msa_jax.engine import fusion
from msa_jax.engine.conversation import Find
from msa_jax.engine.fusion import Listing
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import LoadedModel
from msa_jax.engine.ranking import rank_documents
from msa_jax.evaluation import minilm
from msa_jax.evaluation.answering import Answering
from msa_jax.evaluation.baselines import BM25, Dense
from msa_jax.evaluation.corpus import Corpus, load_corpus
from msa_jax.evaluation.facts import Stopwatch
from msa_jax.evaluation.finding import SuiteFinder, judged
from msa_jax.evaluation.judging import grade_answers
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.results import Results, columns
from msa_jax.evaluation.retrieval import (
    DEPTH,
    EncodedMemory,
    Router,
    chance_measures,
    ranking_measures,
)
from msa_jax.evaluation.router_report import report_routers
from msa_jax.evaluation.suite_conditions import suite_conditions
from msa_jax.evaluation.suite_config import (
    ANSWERING,
    ANSWERS,
    BM25_ANSWERS,
    BM25_LOOK,
    BM25_SYSTEM,
    CHANCE,
    DENSE,
    DENSE_ANSWERS,
    DENSE_LOOK,
    FULL_ATTENTION,
    FUSED,
    LOOK_ANSWERS,
    MSA,
    MSA_LOOK,
    MSA_WORDS,
    SetConfig,
    SuiteConfig,
    select_questions,
)
from msa_jax.typing import PyTree

# Systems that rank what the routers list.
_OF_ROUTERS = (MSA, MSA_WORDS, MSA_LOOK)
# A memory that is encoded for a size serves larger ones, too, if they need at most so much more.
_WORTH_WAITING = 4


class Suite:
    """A run of a suite.

    Attributes:
        config: what is measured, and what comes with the model where nothing else was asked for.
        conditions: of what it may measure (`suite_conditions`).
        results: so far.
        seconds: that each stage took.
    """

    def __init__(self, config: SuiteConfig):
        """Reads documents and questions, and draws the memories."""
        self.seconds: dict[str, float] = {}
        self.loaded: LoadedModel | None = None
        if {MSA, *FUSED, *ANSWERING} & set(config.systems):
            with self._timed("load"):
                self.loaded = config.load()
            config = config.suit(self.loaded)
            _check_finding(config, self.loaded)
        self.config = config
        self.builder = self.loaded.builder if self.loaded else config.builder()
        questions = {name: select_questions(one, config.seed) for name, one in config.sets.items()}
        counts = {name: len(own) for name, own in questions.items()}
        self.conditions = suite_conditions(config, self.builder, self.loaded, counts)
        self.results = Results(Path(config.workdir), self.conditions)
        with self._timed("corpus"):
            self.corpus: Corpus = load_corpus(
                config.corpus, self.builder, Path(config.workdir) / "corpus"
            )
        with self._timed("memories"):
            self.sets = {name: self._draw(config.sets[name], questions[name]) for name in questions}
        self.answering = Answering(config, self.sets, self.results)
        # What BM25 has listed, by set and size.
        self._words: dict[str, dict[int, Sequence[Listing]]] = {}

    def run(self) -> None:
        """Measures what is not measured yet."""
        if CHANCE in self.config.systems:
            self._chance()
        self._retrieve(BM25_SYSTEM, BM25_ANSWERS, BM25_LOOK, self._bm25)
        self._retrieve(DENSE, DENSE_ANSWERS, DENSE_LOOK, self._dense)
        if any(self.answering.sizes(name, FULL_ATTENTION) for name in self.sets):
            with self._timed(FULL_ATTENTION):
                self.answering.full_attention(self.generator, self.builder)
        if self.loaded is not None:
            self._msa()
        if self.config.judge is not None:
            with self._timed("judge"):
                grade_answers(self.config.judge, self.sets, self.results)

    @cached_property
    def params(self) -> PyTree:
        """The model's parameters, on the device."""
        return jax.device_put(self.loaded.params)

    @cached_property
    def generator(self) -> Generator:
        """The model."""
        return Generator(self.loaded.model, self.params)

    @cached_property
    def finder(self) -> SuiteFinder:
        """Makes one ranking of several."""
        return SuiteFinder(self.loaded, self.params, self.corpus)

    def _draw(self, one: SetConfig, questions: Sequence[Question]) -> Memories:
        others = [
            tuple(pool for pool in tier if pool not in one.pools)
            for tier in self.config.distractors
        ]
        tiers = [one.pools, *others]
        return Memories(self.corpus, questions, tiers, self.config.memory_tokens, self.config.seed)

    def _chance(self) -> None:
        for name, memories in self.sets.items():
            for size in self._missing(name, CHANCE):
                measures = [
                    chance_measures(memories, question, size)
                    for question in range(len(memories.questions))
                ]
                self._add(name, size, CHANCE, measures)

    def _bm25(self) -> BM25:
        return BM25(self.corpus, self.builder.tokenizer)

    def _dense(self) -> Dense:
        folder = self.config.dense_model or minilm.default_folder()
        encoder = minilm.SentenceEncoder(folder, self.config.dense_dtype)
        return Dense(self.corpus, self.builder.tokenizer, encoder)

    def _retrieve(
        self, name: str, reader: str, looked: str, make: Callable[[], BM25 | Dense]
    ) -> None:
        """Measures a retriever, the look at what it finds, and the model that reads that."""
        to_rank = {x: self._wanted(x, name) for x in self.sets}
        to_look = {x: self._wanted(x, looked) for x in self.sets}
        to_read = {x: self.answering.sizes(x, reader) for x in self.sets}
        to_list = {x: self._by_words(x) if name == BM25_SYSTEM else [] for x in self.sets}
        needed = {
            x: sorted({*to_rank[x], *to_look[x], *to_read[x], *to_list[x]}) for x in self.sets
        }
        if not any(needed.values()):
            return
        with self._timed(f"{name} index"):
            system = make()
        for set_name, memories in self.sets.items():
            sizes = needed[set_name]
            if not sizes:
                continue
            with self._timed(f"{name} search"):
                # Once for all sizes, and for all who want it.
                rankings = system.rank(memories, sizes)
                bar = tqdm(rankings, f"{name} {set_name}", len(memories.questions), unit="question")
                by_question = [ranking for _, ranking in bar]
            found = dict(zip(sizes, zip(*by_question, strict=True), strict=True))
            self._words[set_name] = {size: found[size] for size in to_list[set_name]}
            for size in to_rank[set_name]:
                self._add_rankings(set_name, size, name, _best(found[size]))
            for size in to_look[set_name]:
                own = (None, found[size]) if name == BM25_SYSTEM else (found[size], None)
                self._add_fused(set_name, size, looked, *own)
            with self._timed(reader):
                for size in to_read[set_name]:
                    self.answering.from_rankings(
                        self.generator, self.builder, set_name, size, reader, _best(found[size])
                    )

    def _by_words(self, set_name: str) -> list[int]:
        """Sizes, by index, at which somebody wants what the words find beside the routers."""
        sizes = {x for system in (MSA_WORDS, MSA_LOOK) for x in self._wanted(set_name, system)}
        return sorted(sizes | {*self.answering.sizes(set_name, LOOK_ANSWERS)})

    def _msa(self) -> None:
        """Measures the model over one memory after the other, each for some of the sizes."""
        wanted = [size for size in range(len(self.config.memory_tokens)) if self._needs(size)]
        answers = bool(set(ANSWERING) & set(self.config.systems))
        if answers and not wanted and any(map(self.answering.controls, self.sets)):
            wanted = [0]
        max_document_tokens = self.config.corpus.max_document_tokens
        encoder = self.config.encoder(self.loaded, self.params, max_document_tokens)
        for sizes, parts in self._memories(wanted):
            name = f"{self.config.memory_tokens[sizes[-1]]:,} tokens"
            with (
                self._timed(f"encode for {name}"),
                tqdm(desc="encode", unit="chunk", unit_scale=True) as bar,
            ):
                memory = EncodedMemory(
                    self.loaded, encoder, self.corpus, parts, self.config.content_tier, _show(bar)
                )
            tqdm.write(memory.bank.plan.describe())
            with self._timed(f"search to {name}"):
                self._search(memory, sizes)
            if answers:
                with self._timed(f"answers to {name}"):
                    self.answering.over_memory(self.generator, memory, sizes, self._find)
            del memory

    def _memories(self, sizes: Sequence[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Which sizes to measure over which parts: small memories are searched faster."""
        needed = {}
        for size in sizes:
            masks = [memories.in_some(size) for memories in self.sets.values()]
            needed[size] = np.logical_or.reduce(masks)
        lengths, rest = self.corpus.lengths, list(sizes)
        while rest:
            limit = _WORTH_WAITING * lengths[needed[rest[0]]].sum()
            together = [size for size in rest if lengths[needed[size]].sum() <= limit]
            yield together, np.flatnonzero(np.logical_or.reduce([needed[x] for x in together]))
            rest = rest[len(together) :]

    def _search(self, memory: EncodedMemory, sizes: Sequence[int]) -> None:
        router = Router(self.generator, memory, self.config.batch_size)
        for size in sizes:
            for name, memories in self.sets.items():
                wanted = [x for x in _OF_ROUTERS if size in self._wanted(name, x)]
                if not wanted:
                    continue
                title = f"search {name} {self.config.memory_tokens[size]:,}"
                with tqdm(desc=title, total=len(memories.questions), unit="question") as bar:
                    found = router.search(memories, size, bar.update)
                if size == len(memories.sizes) - 1:
                    # Where memories have most in common, which collapse is seen by.
                    folder = Path(self.config.workdir) / f"routers_{name}_{memories.sizes[size]}"
                    for warning in report_routers(folder, memory, memories, size, found):
                        tqdm.write(f"{name}: {warning}")
                listings = [_listing(*one) for one in found]
                if MSA in wanted:
                    more = self._by_layer(memories, found)
                    self._add_rankings(name, size, MSA, _best(listings), more)
                for system in wanted:
                    if system != MSA:
                        self._add_fused(name, size, system, listings, self._words[name][size])

    def _by_layer(self, memories: Memories, found: Sequence[tuple]) -> list[dict[str, float]]:
        """Recall of every layer alone, of the best, and of all that some layer attends to."""
        rows = []
        layers = self.loaded.config.router_layers
        for documents, (parts, _) in zip(memories.documents, found, strict=True):
            attended = [own[own >= 0] for own in parts[:, :DEPTH]]
            recall = [
                ranking_measures(self.corpus, documents, own)["recall@16"] for own in attended
            ]
            everything = np.concatenate(attended)
            row = {f"recall@16 layer {layer}": x for layer, x in zip(layers, recall, strict=True)}
            row["recall@16 union"] = float(
                np.isin(documents, self.corpus.document[everything]).mean()
            )
            rows.append(row)
        best = max(layers, key=lambda x: np.mean([row[f"recall@16 layer {x}"] for row in rows]))
        return [{**row, "recall@16 best layer": row[f"recall@16 layer {best}"]} for row in rows]

    def _add_fused(
        self,
        set_name: str,
        size: int,
        system: str,
        routers: Sequence[Listing] | None,
        words: Sequence[Listing] | None,
    ) -> None:
        """Measures one ranking of several."""
        questions = [question.question for question in self.sets[set_name].questions]
        with self._timed(system):
            evidence = self.finder.gather(questions, routers, words, look=system != MSA_WORDS)
        found = [self.loaded.fusion.ranking(own) for own in evidence]
        sure = [
            {"probability of the first": float(own.scores[0]) if len(own.ids) else 0.0}
            for own in found
        ]
        # What `msa_jax.fit_ranking` reads.
        kept = None
        if system == MSA_LOOK:
            documents = self.sets[set_name].documents
            kept = [
                judged(self.corpus, own, right)
                for own, right in zip(evidence, documents, strict=True)
            ]
        self._add_rankings(set_name, size, system, _best(found), sure, kept)

    def _find(self, set_name: str, size: int, questions: Sequence[int]) -> Find:
        """What `Library.find` takes, of some questions of a set."""
        words = self._words[set_name][size]
        return self.finder.over_ids(self.sets[set_name], questions, words)

    def _needs(self, size: int) -> bool:
        return any(
            any(size in self._wanted(name, system) for system in _OF_ROUTERS)
            or any(size in self.answering.sizes(name, x) for x in (ANSWERS, LOOK_ANSWERS))
            for name in self.sets
        )

    def _wanted(self, set_name: str, system: str) -> list[int]:
        """Sizes, by index, at which a system is still to be measured on a set."""
        return self._missing(set_name, system) if system in self.config.systems else []

    def _missing(self, set_name: str, system: str) -> list[int]:
        """Sizes, by index, at which a system has not been measured on a set."""
        tokens = self.config.memory_tokens
        return [i for i, x in enumerate(tokens) if not self.results.has(set_name, x, system)]

    def _add_rankings(
        self,
        set_name: str,
        size: int,
        system: str,
        rankings: Sequence[np.ndarray],
        more: Sequence[Mapping[str, float]] | None = None,
        kept: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        memories = self.sets[set_name]
        measures = [
            ranking_measures(self.corpus, documents, ranking)
            for documents, ranking in zip(memories.documents, rankings, strict=True)
        ]
        if more is not None:
            measures = [{**one, **other} for one, other in zip(measures, more, strict=True)]
        kept = [
            {"question": question.id, "ranking": self.corpus.ids[ranking].tolist(), **own}
            for question, ranking, own in zip(
                memories.questions, rankings, kept or [{}] * len(rankings), strict=True
            )
        ]
        self._add(set_name, size, system, measures, kept)

    def _add(self, set_name, size: int, system: str, measures, kept=()) -> None:
        tokens = self.config.memory_tokens[size]
        self.results.add(set_name, tokens, system, columns(measures), kept)

    def _timed(self, stage: str):
        return Stopwatch(self.seconds, stage)


def _check_finding(config: SuiteConfig, loaded: LoadedModel) -> None:
    """Whether the model has what the systems with one ranking of several need."""
    for system in config.systems:
        if system in (*FUSED, LOOK_ANSWERS) and None in (loaded.look, loaded.fusion):
            raise ConfigError(
                f"systems: {system!r} needs a model with {look.FILE} and {fusion.FILE}, which "
                f"{loaded.source} does not have; leave the system out."
            )


def _listing(parts: np.ndarray, scores: np.ndarray) -> Listing:
    """What layers have listed as one list."""
    ranked, means = rank_documents(parts, scores)
    return Listing(ranked.astype(int), means)


def _best(listings: Sequence[Listing]) -> list[np.ndarray]:
    """Places of rankings that count."""
    return [listing.ids[:DEPTH] for listing in listings]


def _show(bar: tqdm) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show
