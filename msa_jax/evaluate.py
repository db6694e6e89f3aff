"""Measures retrieval and answers: `python -m msa_jax.evaluate --config=configs/eval/real_text.py`.

`configs/eval/ruler.py` measures answers on RULER's needles in haystacks.
Fields can be overridden (`--config.FIELD=VALUE`). A run that was interrupted goes on where it
stopped when the same command is given again; a workdir with results of another model, other texts
or other settings is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from msa_jax import cli
from msa_jax.config_file import CONFIG, parse_flags
from msa_jax.evaluation.curves import write_curves
from msa_jax.evaluation.judge import JudgeError
from msa_jax.evaluation.ruler.run import RulerRun, ruler_config
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import suite_config
from msa_jax.terminal import show


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    values = CONFIG.value.to_dict()
    values["workdir"] = workdir_of(values["workdir"], values.get("checkpoint"))
    if values.pop("benchmark", None) == "ruler":
        show(RulerRun(ruler_config(values)).run())
        return
    suite = Suite(suite_config(values))
    try:
        suite.run()
    finally:
        # Of a run that fails, too: what was measured is worth keeping.
        show(write_curves(suite, sys.argv))


def workdir_of(workdir: str, checkpoint: str | None) -> str:
    """A workdir with the name of the model for `{model}`, so that models have one each.

    Args:
        workdir: as it is configured.
        checkpoint: of the model; None where baselines are measured alone.
    """
    _, _, path = (checkpoint or "baselines").rpartition(":")
    return workdir.replace("{model}", Path(path).absolute().name)


def run() -> None:
    """Runs the program."""
    # Before JAX starts: a large memory needs most of a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    cli.keep_compiled()
    cli.run(main, flags.FLAGS, parse_flags, mendable=(JudgeError,))


if __name__ == "__main__":
    run()
