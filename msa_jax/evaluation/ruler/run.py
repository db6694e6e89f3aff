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
from msa_jax.evaluation import qa
from msa_jax.evaluation.results import Results, columns
from msa_jax.evaluation.ruler import scoring
from msa_jax.evaluation.ruler.benchmark import Ruler, Task
from msa_jax.evaluation.ruler.memories import RulerMemory, Samples, gather
from msa_jax.evaluation.ruler.report import SCORE, write_report
from msa_jax.evaluation.ruler.tasks import ANSWER_TOKENS, SUBTASKS
from msa_jax.evaluation.run_config import RunConfig
from msa_jax.evaluation.suite_config import ANSWERS

_CONFIG = "config.json"
# What a run may change without being another one.
_FREE = ("workdir", "subtasks", "memory_tokens", "batch_size", "encode_batch_tokens")


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
    num_samples: int = 100
    max_document_tokens: int = 256
    seed: int = 42

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.subtasks if name not in SUBTASKS]
        if unknown:
            raise ConfigError(
                f"subtasks: {unknown[0]!r} is not one of {', '.join(SUBTASKS)}; correct it."
            )
        if self.num_samples < 1:
            raise ConfigError(f"num_samples must be a number from 1 on, not {self.num_samples}.")


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
        self.results = Results(Path(config.workdir))
        _keep_config(config)

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


def _keep_config(config: RulerConfig) -> None:
    """Writes down what a run depends on, or makes sure that it is what was written."""
    values = dataclasses.asdict(config)
    values = json.loads(json.dumps({x: values[x] for x in values if x not in _FREE}))
    path = Path(config.workdir, _CONFIG)
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in values if kept.get(name) != values[name]]
        if other:
            raise ConfigError(
                f"{config.workdir} holds results with another {', '.join(other)}; name another "
                "workdir."
            )
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
