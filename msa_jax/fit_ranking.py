"""Fits how a model ranks routers, words and look, from measured lists of training questions.

    python -m msa_jax.evaluate --config=CONFIG --config.workdir=runs/lists ...
    python -m msa_jax.fit_ranking --results=runs/lists --to=FOLDER

The first command measures the system "msa + words + look" on questions that neither routers nor
look were trained on; the second writes FOLDER/ranking.json. Fit over memories of several sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.engine.fitting import Judged, fit_fusion
from msa_jax.engine.fusion import FILE, save_fusion
from msa_jax.evaluation.results import PREDICTIONS
from msa_jax.evaluation.suite_config import MSA_LOOK
from msa_jax.flag_types import define_overwrite, refuse_to_replace
from msa_jax.terminal import show

FLAGS = flags.FlagValues()
_RESULTS = flags.DEFINE_list(
    "results", None, "Workdirs of msa_jax.evaluate, with commas between them.", flag_values=FLAGS
)
_TO = flags.DEFINE_string("to", None, "The folder of the model.", flag_values=FLAGS)
_OVERWRITE = define_overwrite(FLAGS)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    workdirs = cli.given(_RESULTS, "a workdir of msa_jax.evaluate")
    to = Path(cli.given(_TO, "the folder of the model"))
    if not to.is_dir():
        raise ConfigError(f"--to={to} is no folder; name the folder of the model.")
    refuse_to_replace(to / FILE, _OVERWRITE.value)
    questions = [one for workdir in workdirs for one in read_lists(Path(workdir))]
    save_fusion(to, fit_fusion(questions))
    show(f"{to / FILE} written, fitted on {len(questions):,} lists.")


def read_lists(workdir: Path) -> Iterator[Judged]:
    """The lists that a run of the suite has kept.

    Raises:
        ConfigError: if it has none, or a line is not what the suite writes.
    """
    path, found = workdir / PREDICTIONS, False
    if not path.is_file():
        raise ConfigError(f"{workdir} has no {PREDICTIONS}; name a workdir of msa_jax.evaluate.")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                kept = json.loads(line)
                if kept["system"] != MSA_LOOK:
                    continue
                found = True
                yield Judged(
                    (kept["set"], kept["memory_tokens"]),
                    np.array(kept["features"], float).reshape(-1, 4),
                    np.array(kept["logits"], float),
                    np.array(kept["right"], bool),
                    int(kept["positives"]),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: this is not what msa_jax.evaluate writes ({error!r}); "
                    "measure again."
                ) from error
    if not found:
        raise ConfigError(f"{path} has no lists of {MSA_LOOK!r}; measure that system first.")


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
