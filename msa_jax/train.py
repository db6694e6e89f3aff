"""Trains a model: `python -m msa_jax.train --config=configs/tiny.py [--config.FIELD=VALUE ...]`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from msa_jax import cli, distributed
from msa_jax.config import ConfigError, from_mapping
from msa_jax.config_file import CONFIG, parse_flags
from msa_jax.data.demo import DemoConfig, build_demo_corpus
from msa_jax.evaluation.report import write_report
from msa_jax.evaluation.scaling import ScalingConfig, measure_scaling
from msa_jax.modules.transformer import Transformer
from msa_jax.terminal import show
from msa_jax.training.config import TrainConfig, train_config
from msa_jax.training.trainer import DivergenceError, train
from msa_jax.typing import PyTree

_NOT_TRAINING = ("demo", "evaluation")


def main(_: Sequence[str]) -> None:
    distributed.start()
    train_and_measure(CONFIG.value)


def train_and_measure(config: ConfigDict) -> None:
    """Trains, and measures the result where the configuration has an `evaluation` section.

    Raises:
        ConfigError: if the configuration cannot be used.
        RecordError: if a documents or questions file has a bad record.
    """
    started = time.monotonic()
    run_of(config)  # What is wrong with it shows before a corpus is made.
    distributed.check_workdir(config.workdir)
    with distributed.first_process_first("demo corpus"):
        use_demo_corpus(config)
    evaluation = held_out(config)
    run_config = run_of(config)
    result = train(run_config)
    if evaluation is None or result.interrupted:
        return
    if jax.process_count() > 1:
        distributed.say("Only a single process measures: give this command to one machine now.")
    else:
        evaluate(evaluation, run_config, result.params, started)


def run_of(config: ConfigDict) -> TrainConfig:
    """The part of a configuration that training needs."""
    return train_config({name: config[name] for name in config if name not in _NOT_TRAINING})


def use_demo_corpus(config: ConfigDict) -> None:
    """Where no documents are given, gathers them from the documentation on this machine.

    Raises:
        ConfigError: if there is a documents file without a questions file or the reverse, or
            neither and the configuration has no `demo` section.
    """
    data = config.data
    if data.get("sources") or (data.documents and data.questions):
        return
    if data.documents or data.questions or "demo" not in config:
        raise ConfigError("data.documents and data.questions must both name a JSON Lines file.")
    corpus = Path(config.workdir) / "corpus"
    distributed.say(
        f"No data.documents given: gathering the documentation on this machine in {corpus}."
    )
    counts = build_demo_corpus(corpus, from_mapping(DemoConfig, config.demo, "demo"))
    distributed.say(
        ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    )
    data.documents, data.questions = _split_files(corpus, "train")
    if "evaluation" in config and not config.evaluation.documents:
        config.evaluation.documents, config.evaluation.questions = _split_files(corpus, "heldout")


def held_out(config: ConfigDict) -> ScalingConfig | None:
    """What to measure the trained model on; None, with a word about it, if nothing is given."""
    if "evaluation" not in config:
        return None
    if not config.evaluation.documents:
        distributed.say("No evaluation.documents given: the model will not be measured.")
        return None
    return from_mapping(ScalingConfig, config.evaluation, "evaluation")


def evaluate(
    evaluation: ScalingConfig, run_config: TrainConfig, params: PyTree, started: float
) -> None:
    """Measures retrieval against memory size; prints a table, writes JSON and a plot."""
    trained = time.monotonic()
    model = Transformer(run_config.model)
    points = measure_scaling(evaluation, run_config.data, model, params)
    facts = {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "config": dataclasses.asdict(run_config),
        "seconds": {
            "corpus and training": round(trained - started, 1),
            "evaluation": round(time.monotonic() - trained, 1),
        },
    }
    show(write_report(run_config.workdir, points, facts))
    show(f"Written to {run_config.workdir}: results.json, scaling.png, metrics.jsonl.")


def _split_files(corpus: Path, split: str) -> tuple[str, str]:
    return tuple(str(corpus / f"{split}.{kind}.jsonl") for kind in ("documents", "questions"))


def run() -> None:
    """Runs the program."""
    cli.run(main, flags.FLAGS, parse_flags, mendable=(DivergenceError,))


if __name__ == "__main__":
    run()
