"""The flag `--config`, a file of `configs/` whose fields `--config.FIELD=VALUE` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from msa_jax.config import ConfigError
from msa_jax.errors import RecordError

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="What to do: a Python file with get_config(), as in configs/."
)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses all flags; returns the program's name and the arguments that are no flags.

    Raises:
        ConfigError: for a flag that there is not, or a value that it cannot have; for a
            configuration file that is not there; for a field that it does not have.
        RecordError: for a file that the configuration reads.
    """
    try:
        rest = flags.FLAGS(arguments)
        # A file that could not be loaded raises here, at the first use.
        loaded = CONFIG.value is not None and bool(CONFIG.value.keys())
    except AttributeError as error:
        # How ml_collections answers an override of a field that the config does not have.
        field, hint = re.search(r"\w+", str(error)), re.search(r"Did you mean.*\?", str(error))
        overrides = [x for x in arguments if field[0] in x.partition("=")[0].split(".")]
        raise ConfigError(
            f"{' '.join(overrides)} names a field that the configuration does not have"
            f"{'; ' + hint[0] if hint else '.'}"
        ) from error
    except (flags.Error, OSError) as error:
        raise _told(error) or ConfigError(" ".join(str(error).split())) from error
    if not loaded:
        raise ConfigError("--config is missing; name a file, as in --config=configs/tiny.py.")
    return rest


def _told(error: BaseException) -> ConfigError | RecordError | None:
    """What a configuration file raised, without the traces that ml_collections makes of it."""
    chain = [x for x in _chain(error) if isinstance(x, ConfigError | RecordError)]
    return chain[-1] if chain else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
