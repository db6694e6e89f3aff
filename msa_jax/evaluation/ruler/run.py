"""A model on RULER's needles, from 16K to 100M tokens: `configs/eval/ruler.py`.

Like a suite, a run writes down what it measures at once, and one that was cut goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from msa_jax.config import ConfigError, from_mapping
from msa_jax.engine.encode import Encoder
from msa_jax.engine.generate import Generator
from msa_jax.engine.loading import LoadedModel
from msa_jax.evaluation import qa
from msa_jax.evaluation.conditions import (
    Conditions,
    digest_files,
    model_conditions,
    text_conditions,
)
from msa_jax.evaluation.results import Results, columns, key_of
from msa_jax.evaluation.ruler import scoring
from msa_jax.evaluation.ruler.benchmark import Ruler, Task
from msa_jax.evaluation.ruler.memories import RulerMemory, Samples, gather
from msa_jax.evaluation.ruler.report import SCORE, write_report
from msa_jax.evaluation.ruler.tasks import ANSWER_TOKENS, ESSAY, SUBTASKS
from msa_jax.evaluation.run_config import (
    RunConfig,
    interleave_conditions,
    memory_conditions,
)
from msa_jax.evaluation.suite_config import ANSWERS
from msa_jax.fields import Count, Seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerConfig(RunConfig):
    """What to measure. Names around documents do not count as tokens of memory.

    Attributes:
        essays: text to hide needles in (`open_source`); only noise and needles if None.
        subtasks: of `SUBTASKS`.
        num_samples: of each subtask.
        max_document_tokens: of a document, with what the template puts around it.
        seed: of needles, haystacks and the documents' ids.
    """

    essays: str | None = None
    subtasks: tuple[str, ...] = tuple(SUBTASKS)
    num_samples: Count = 100
    max_document_tokens: Count = 256
    seed: Seed = 42

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.subtasks if name not in SUBTASKS]
        if unknown:
            raise ConfigError(
                f"subtasks: {unknown[0]!r} is not one of {', '.join(SUBTASKS)}; correct it."
            )


class RulerRun:
    """A run over subtasks and sizes.

    Attributes:
        config: what is measured, and what comes with the model where nothing else was asked for.
        results: so far; the value of `SCORE` is a share, a hundredth of RULER's score.
    """

    def __init__(self, config: RulerConfig):
        """Loads the model, and draws needles.

        Raises:
            ConfigError: if the model is not there, or `workdir` holds results of another run.
        """
        self._loaded = config.load()
        self.config = config = config.suit(self._loaded)
        self._ruler = Ruler(
            self._loaded.builder,
            config.max_document_tokens,
            config.num_samples,
            config.seed,
            config.essays,
        )
        self.results = Results(Path(config.workdir), _conditions(config, self._loaded))

    def run(self) -> str:
        """Measures what is not measured yet; writes all scores, and returns them as a table."""
        config, loaded = self.config, self._loaded
        params = jax.device_put(loaded.params)
        encoder = config.encoder(loaded, params, config.max_document_tokens)
        generator = Generator(loaded.model, params)
        for size in config.memory_tokens:
            names = [x for x in config.subtasks if not self.results.has(x, size, ANSWERS)]
            for haystack in dict.fromkeys(SUBTASKS[name].haystack_name for name in names):
                group = [name for name in names if SUBTASKS[name].haystack_name == haystack]
                tasks = [self._ruler.task(name, size) for name in group]
                self._measure(tasks, encoder, generator)
        settings = json.dumps(dataclasses.asdict(config), indent=2)
        Path(config.workdir, "config.json").write_text(settings + "\n", encoding="utf-8")
        return write_report(self.results, Path(config.workdir))

    def _measure(self, tasks: Sequence[Task], encoder: Encoder, generator: Generator) -> None:
        """Answers the questions of tasks that share a haystack."""
        config = self.config
        gathered = gather(tasks, self._loaded.builder, config.max_document_tokens, config.seed)
        corpus = gathered[0].corpus
        memory = RulerMemory(
            self._loaded, encoder, corpus, np.arange(len(corpus)), config.content_tier
        )
        tqdm.write(memory.bank.plan.describe())
        reader = qa.Reader(generator, memory, config.interleave, ANSWER_TOKENS, config.batch_size)
        for samples in gathered:
            size = samples.task.memory_tokens
            for control in qa.CONTROLS:
                self._ask(reader, samples, control, 0, f"{ANSWERS} {control}")
            self._ask(reader, samples, size, size, ANSWERS)

    def _ask(
        self, reader: qa.Reader, samples: Samples, size: int | str, memory_tokens: int, system: str
    ) -> None:
        name = samples.task.subtask.name
        if self.results.has(name, memory_tokens, system):
            return
        count = len(samples.questions)
        title = f"{system} {name} {memory_tokens:,}"
        with tqdm(desc=title, total=count, unit="question") as bar:
            conversations = reader.ask(samples, size, count, bar.update)
        measured, kept = [], []
        for index, (sample, conversation) in enumerate(
            zip(samples.task.samples, conversations, strict=True)
        ):
            share = scoring.share_found(conversation.answer, sample.references)
            retrieval, said = qa.answer_measures(samples, reader.memory, index, conversation)
            own = {SCORE: share, **retrieval}
            measured.append(own)
            asked = {"question": sample.question.id, "references": list(sample.references)}
            kept.append({**asked, **said, **own})
        self.results.add(name, memory_tokens, system, columns(measured), kept)


def ruler_config(values: Mapping[str, Any]) -> RulerConfig:
    """Builds a run from a plain mapping."""
    return from_mapping(RulerConfig, values)


def _conditions(config: RulerConfig, loaded: LoadedModel) -> dict[str, Conditions]:
    """What the results of each subtask, controls included, belong to."""
    shared = text_conditions(loaded.builder) | model_conditions(loaded)
    shared |= memory_conditions(config, loaded) | interleave_conditions(config.interleave)
    shared |= {x: getattr(config, x) for x in ("num_samples", "max_document_tokens", "seed")}
    essays = {}
    if config.essays is not None:
        essays["essays"] = digest_files(config.essays)
    conditions = {}
    for name in config.subtasks:
        own = shared | essays if SUBTASKS[name].haystack == ESSAY else shared
        for system in (ANSWERS, *(f"{ANSWERS} {control}" for control in qa.CONTROLS)):
            conditions[key_of(name, system)] = own
    return conditions
