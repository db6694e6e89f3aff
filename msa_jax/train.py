"""Trains a model: `python -m msa_jax.train --config=configs/tiny.py [--config.FIELD=VALUE ...]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from msa_jax.checkpoint.huggingface import CheckpointError
from msa_jax.config import ConfigError
from msa_jax.data.records import RecordError
from msa_jax.training.config import train_config
from msa_jax.training.trainer import DivergenceError, train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The run: a file of configs/.")


def main(_: Sequence[str]) -> None:
    config = _CONFIG.value
    train(train_config({name: config[name] for name in config if name != "evaluation"}))


def run() -> None:
    """Runs the program; what the user can mend is one line on stderr and exit code 2."""
    try:
        app.run(main, flags_parser=_parse_flags)
    except (ConfigError, RecordError, CheckpointError, DivergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
        # A file that could not be loaded raises here, at the first use.
        loaded = _CONFIG.value is not None and bool(_CONFIG.value.keys())
    except AttributeError as error:
        # How ml_collections answers an override of a field that the config does not have.
        field, hint = re.search(r"\w+", str(error)), re.search(r"Did you mean.*\?", str(error))
        overrides = [x for x in arguments if field[0] in x.partition("=")[0].split(".")]
        raise ConfigError(
            f"{' '.join(overrides)} names a field that the configuration does not have"
            f"{'; ' + hint[0] if hint else '.'}"
        ) from error
    except (flags.Error, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not loaded:
        raise ConfigError("--config is missing; name a file, as in --config=configs/tiny.py.")
    return rest


if __name__ == "__main__":
    run()
