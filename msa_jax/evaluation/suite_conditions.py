"""What the results of each system of a suite depend on: a new system is a line of `_DEPENDS_ON`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msa_jax.checkpoint import look
from msa_jax.config import ConfigError
from msa_jax.data.templates import PromptBuilder
from msa_jax.engine import fusion
from msa_jax.engine.loading import LoadedModel
from msa_jax.evaluation import minilm
from msa_jax.evaluation.conditions import Conditions, digest_files, model_conditions
from msa_jax.evaluation.corpus import corpus_conditions
from msa_jax.evaluation.judging import GRADE
from msa_jax.evaluation.qa import NO_MEMORY, ORACLE, RANDOM
from msa_jax.evaluation.results import key_of
from msa_jax.evaluation.run_config import interleave_conditions, memory_conditions
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
    LOOK_ANSWERS,
    MSA,
    MSA_LOOK,
    MSA_WORDS,
    SuiteConfig,
)


def suite_conditions(
    config: SuiteConfig,
    builder: PromptBuilder,
    loaded: LoadedModel | None,
    num_questions: Mapping[str, int],
) -> dict[str, Conditions]:
    """Conditions of all that a run may measure, by `key_of` the set and the system.

    Args:
        config: with what comes with the model (`suit`).
        builder: encoder of the template.
        loaded: the model; None if no system needs it.
        num_questions: of each set.

    Raises:
        ConfigError: if a file is not there.
    """
    drawn = corpus_conditions(config.corpus, builder)
    drawn |= {"seed": config.seed, "distractors": config.distractors}
    own = _by_system(config, loaded)
    conditions = {}
    for name, count in num_questions.items():
        of_set = drawn | _of_questions(config, name, count)
        for system, of_system in own.items():
            key = key_of(name, system)
            conditions[key] = of_set | of_system
            if _answers in _DEPENDS_ON[system]:
                conditions[key][f"sets.{name}.answered"] = min(config.sets[name].answered, count)
    return conditions


def _by_system(config: SuiteConfig, loaded: LoadedModel | None) -> dict[str, dict[str, Any]]:
    """What systems depend on besides documents and questions."""
    systems = list(config.systems)
    if set(ANSWERING) & set(systems):
        systems += [f"{MSA} {control}" for control in (NO_MEMORY, ORACLE, RANDOM)]
    if config.judge is not None:
        systems.append(GRADE)
    groups = {group for system in systems for group in _DEPENDS_ON[system]}
    # Once for all systems: digests of weights take a moment.
    values = {group: group(config, loaded) for group in groups}
    return {
        system: {x: y for group in _DEPENDS_ON[system] for x, y in values[group].items()}
        for system in systems
    }


def _of_questions(config: SuiteConfig, name: str, count: int) -> dict[str, Any]:
    one = config.sets[name]
    return {
        f"sets.{name}.questions": digest_files(one.questions),
        f"sets.{name}.dataset": one.dataset,
        f"sets.{name}.split": one.split,
        f"sets.{name}.types": one.types,
        f"sets.{name}.pools": one.pools,
        f"sets.{name}.count": count,
    }


def _dense(config: SuiteConfig, _) -> dict[str, Any]:
    values = {"dense_dtype": config.dense_dtype}
    try:
        folder = config.dense_model or minilm.default_folder()
        return values | {"dense_model": minilm.digest(folder)}
    except ConfigError:
        # What was measured elsewhere can be gone on from without it; to measure needs it.
        return values


def _model(_, loaded: LoadedModel) -> dict[str, Any]:
    return model_conditions(loaded)


def _memory(config: SuiteConfig, loaded: LoadedModel) -> dict[str, Any]:
    return memory_conditions(config, loaded)


def _finding(_, loaded: LoadedModel) -> dict[str, Any]:
    folder = Path(loaded.source)
    files = (folder / look.FILE, folder / fusion.FILE)
    return {x.name: digest_files(str(x)) if x.is_file() else None for x in files}


def _interleave(config: SuiteConfig, _) -> dict[str, Any]:
    return interleave_conditions(config.interleave)


def _retrieve_then_read(config: SuiteConfig, _) -> dict[str, Any]:
    heeded = ("max_documents", "max_documents_per_round", "max_original_tokens")
    return {f"interleave.{name}": getattr(config.interleave, name) for name in heeded}


def _context(config: SuiteConfig, _) -> dict[str, Any]:
    return {"context_tokens": config.context_tokens}


def _smallest_memory(config: SuiteConfig, _) -> dict[str, Any]:
    return {"smallest memory": config.memory_tokens[0]}


def _answers(config: SuiteConfig, _) -> dict[str, Any]:
    return {"max_answer_tokens": config.max_answer_tokens}


def _judge(config: SuiteConfig, _) -> dict[str, Any]:
    return {"judge.model": config.judge.model, "judge.temperature": config.judge.temperature}


_ANSWERS = (_model, _memory, _interleave, _answers)
_DEPENDS_ON: dict[str, tuple[Callable[[SuiteConfig, LoadedModel | None], dict[str, Any]], ...]] = {
    CHANCE: (),
    BM25_SYSTEM: (),
    DENSE: (_dense,),
    MSA: (_model, _memory),
    MSA_WORDS: (_model, _memory, _finding),
    MSA_LOOK: (_model, _memory, _finding),
    BM25_LOOK: (_model, _finding),
    DENSE_LOOK: (_dense, _model, _finding),
    LOOK_ANSWERS: (*_ANSWERS, _finding),
    ANSWERS: _ANSWERS,
    f"{MSA} {NO_MEMORY}": _ANSWERS,
    f"{MSA} {ORACLE}": _ANSWERS,
    f"{MSA} {RANDOM}": (*_ANSWERS, _smallest_memory),
    BM25_ANSWERS: (_model, _retrieve_then_read, _answers),
    DENSE_ANSWERS: (_dense, _model, _retrieve_then_read, _answers),
    FULL_ATTENTION: (_model, _answers, _context),
    GRADE: (_judge,),
}
