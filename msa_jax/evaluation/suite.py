"""Retrieval and answers against memory size on real text, with baselines and controls.

What is measured is written down at once, set by set and size by size, and what is there already is
not measured again: a run that was cut goes on, and several systems can be measured on several
machines, one after the other, in the same folder.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import LoadedModel, load_model
from msa_jax.engine.ranking import rank_documents
from msa_jax.evaluation import minilm, qa
from msa_jax.evaluation.baselines import BM25, Dense
from msa_jax.evaluation.corpus import Corpus, load_corpus
from msa_jax.evaluation.memories import Memories
from msa_jax.evaluation.results import Results
from msa_jax.evaluation.retrieval import (
    DEPTH,
    EncodedMemory,
    Router,
    chance_measures,
    ranking_measures,
)
from msa_jax.evaluation.suite_config import (
    ANSWERS,
    BM25_SYSTEM,
    CHANCE,
    DENSE,
    MSA,
    SetConfig,
    SuiteConfig,
    select_questions,
)

# A memory that is encoded for a size serves larger ones, too, if they need at most so much more.
_WORTH_WAITING = 4


class Suite:
    """A run of a suite.

    Attributes:
        results: so far.
        seconds: that each stage took.
    """

    def __init__(self, config: SuiteConfig):
        """Reads documents and questions, and draws the memories."""
        self.config = config
        self.seconds: dict[str, float] = {}
        self.loaded = self._load() if {MSA, ANSWERS} & set(config.systems) else None
        self.builder = self.loaded.builder if self.loaded else _builder(config)
        with self._timed("corpus"):
            self.corpus: Corpus = load_corpus(
                config.corpus, self.builder, Path(config.workdir) / "corpus"
            )
        with self._timed("memories"):
            self.sets = {name: self._draw(one) for name, one in config.sets.items()}
        self.results = Results(Path(config.workdir))

    def run(self) -> None:
        """Measures what is not measured yet."""
        measures = {CHANCE: self._chance, BM25_SYSTEM: self._bm25, DENSE: self._dense}
        for system in self.config.systems:
            if system in measures:
                measures[system]()
        if self.loaded is not None:
            self._msa()

    def _load(self) -> LoadedModel:
        config = self.config
        if config.checkpoint is None:
            raise ConfigError("checkpoint is missing; name the model to measure.")
        with self._timed("load"):
            return load_model(
                config.checkpoint, config.tokenizer, config.template, dtype=config.dtype
            )

    def _draw(self, one: SetConfig) -> Memories:
        others = [
            tuple(pool for pool in tier if pool not in one.pools)
            for tier in self.config.distractors
        ]
        questions = select_questions(one, self.config.seed)
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

    def _bm25(self) -> None:
        if any(self._missing(name, BM25_SYSTEM) for name in self.sets):
            with self._timed("bm25 index"):
                system = BM25(self.corpus, self.builder.tokenizer)
            with self._timed("bm25 search"):
                self._rank(BM25_SYSTEM, system)

    def _dense(self) -> None:
        if any(self._missing(name, DENSE) for name in self.sets):
            folder = self.config.dense_model or minilm.default_folder()
            with self._timed("dense index"):
                encoder = minilm.SentenceEncoder(folder, self.config.dense_dtype)
                system = Dense(self.corpus, self.builder.tokenizer, encoder)
            with self._timed("dense search"):
                self._rank(DENSE, system)

    def _rank(self, name: str, system: BM25 | Dense) -> None:
        """Measures a system that ranks for all sizes at once."""
        for set_name, memories in self.sets.items():
            sizes = self._missing(set_name, name)
            if not sizes:
                continue
            rankings = system.rank(memories, sizes)
            bar = tqdm(rankings, f"{name} {set_name}", len(memories.questions), unit="question")
            by_size = zip(*(ranking for _, ranking in bar), strict=True)
            for size, of_size in zip(sizes, by_size, strict=True):
                self._add_rankings(set_name, size, name, of_size)

    def _msa(self) -> None:
        """Measures the model over one memory after the other, each for some of the sizes."""
        wanted = [size for size in range(len(self.config.memory_tokens)) if self._needs(size)]
        params = jax.device_put(self.loaded.params)
        layout = bank_layout(
            self.loaded.config,
            self.config.corpus.max_document_tokens,
            self.config.key_dtype,
            self.config.content_dtype,
        )
        batch_tokens = self.config.encode_batch_tokens
        encoder = Encoder(self.loaded.model, params, layout, batch_tokens=batch_tokens)
        generator = Generator(self.loaded.model, params)
        controls = True
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
            if MSA in self.config.systems:
                with self._timed(f"search to {name}"):
                    self._search(generator, memory, sizes)
            if ANSWERS in self.config.systems:
                with self._timed(f"answers to {name}"):
                    self._answer(generator, memory, sizes, controls)
            controls = False
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

    def _search(self, generator: Generator, memory: EncodedMemory, sizes: Sequence[int]) -> None:
        router = Router(generator, memory, self.config.batch_size)
        for size in sizes:
            for name, memories in self.sets.items():
                if size not in self._missing(name, MSA):
                    continue
                title = f"search {name} {self.config.memory_tokens[size]:,}"
                with tqdm(desc=title, total=len(memories.questions), unit="question") as bar:
                    found = router.search(memories, size, bar.update)
                rankings = [rank_documents(*one)[0][:DEPTH].astype(int) for one in found]
                self._add_rankings(name, size, MSA, rankings, self._by_layer(memories, found))

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

    def _answer(
        self, generator: Generator, memory: EncodedMemory, sizes: Sequence[int], controls: bool
    ) -> None:
        config = self.config
        reader = qa.Reader(
            generator, memory, config.interleave, config.max_answer_tokens, config.answer_batch_size
        )
        tokens = [config.memory_tokens[size] for size in sizes]
        asked = [
            (size, t, ANSWERS)
            for size, t in zip(sizes, tokens, strict=True)
            if t in config.answer_memory_tokens
        ]
        if controls:
            asked = [(kind, 0, f"{MSA} {kind}") for kind in qa.CONTROLS] + asked
        for size, memory_tokens, system in asked:
            for name, memories in self.sets.items():
                count = min(config.sets[name].answered, len(memories.questions))
                if not count or self.results.has(name, memory_tokens, system):
                    continue
                with tqdm(
                    desc=f"{system} {name} {memory_tokens:,}", total=count, unit="question"
                ) as bar:
                    conversations = reader.ask(memories, size, count, bar.update)
                pairs = [
                    qa.answer_measures(memories, memory, question, conversation)
                    for question, conversation in enumerate(conversations)
                ]
                kept = [
                    {"question": memories.questions[i].id, **of_one, **measures}
                    for i, (measures, of_one) in enumerate(pairs)
                ]
                self.results.add(
                    name, memory_tokens, system, _columns(measures for measures, _ in pairs), kept
                )

    def _needs(self, size: int) -> bool:
        tokens = self.config.memory_tokens[size]
        for name, one in self.config.sets.items():
            if MSA in self.config.systems and size in self._missing(name, MSA):
                return True
            is_asked = ANSWERS in self.config.systems and tokens in self.config.answer_memory_tokens
            if is_asked and one.answered and not self.results.has(name, tokens, ANSWERS):
                return True
        return False

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
    ) -> None:
        memories = self.sets[set_name]
        measures = [
            ranking_measures(self.corpus, documents, ranking)
            for documents, ranking in zip(memories.documents, rankings, strict=True)
        ]
        if more is not None:
            measures = [{**one, **other} for one, other in zip(measures, more, strict=True)]
        kept = [
            {"question": question.id, "ranking": self.corpus.ids[ranking].tolist()}
            for question, ranking in zip(memories.questions, rankings, strict=True)
        ]
        self._add(set_name, size, system, measures, kept)

    def _add(self, set_name, size: int, system: str, measures, kept=()) -> None:
        tokens = self.config.memory_tokens[size]
        self.results.add(set_name, tokens, system, _columns(measures), kept)

    def _timed(self, stage: str):
        return _Stopwatch(self.seconds, stage)


def _builder(config: SuiteConfig) -> PromptBuilder:
    if config.tokenizer is None:
        raise ConfigError("tokenizer is missing; name that of the model, or a checkpoint.")
    return PromptBuilder(
        TEMPLATES[config.template], Tokenizer.load(config.tokenizer), MemoryConfig()
    )


def _columns(measures: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Values by metric; questions that lack one (answers, say) are left out of it."""
    columns: dict[str, list[float]] = {}
    for row in measures:
        for metric, value in row.items():
            columns.setdefault(metric, []).append(value)
    return columns


def _show(bar: tqdm) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


class _Stopwatch:
    """Adds the seconds that pass to those of a stage."""

    def __init__(self, seconds: dict[str, float], stage: str):
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        passed = time.monotonic() - self._start
        self._seconds[self._stage] = round(self._seconds.get(self._stage, 0.0) + passed, 1)


def facts_of(suite: Suite, command: Sequence[str]) -> dict[str, Any]:
    """With what, and how long."""
    device, stats = jax.devices()[0], jax.devices()[0].memory_stats() or {}
    packages = ("msa_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "bm25s")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(command),
        "device": device.device_kind,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": versions,
        "corpus": {
            "parts": len(suite.corpus),
            "tokens": int(suite.corpus.stops[-1]),
            "parts_by_pool": {
                pool: int((suite.corpus.pool == i).sum())
                for i, pool in enumerate(suite.corpus.pools)
            },
        },
        "questions": {name: len(one.questions) for name, one in suite.sets.items()},
        "seconds": suite.seconds,
    }
