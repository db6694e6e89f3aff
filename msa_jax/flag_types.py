"""Flags that several programs have: numbers with bounds, and leave to replace what is there."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from absl import flags

from msa_jax.fields import ConfigError, check_value


def define_number(
    name: str, default: float | None, kind: Any, help_string: str, flag_values: flags.FlagValues
) -> flags.FlagHolder:
    """A flag whose value is checked against an annotation of `fields.py`, such as `Count`."""
    return flags.DEFINE(
        _NumberParser(name, kind),
        name,
        default,
        help_string,
        flag_values=flag_values,
        serializer=flags.ArgumentSerializer(),
    )


class _NumberParser(flags.ArgumentParser):
    """Reads a number; absl puts the flag before what is wrong with it."""

    def __init__(self, name: str, kind: Any):
        super().__init__()
        self._name, self._kind = name, kind
        self._number = typing.get_args(kind)[0] if typing.get_args(kind) else kind

    def parse(self, argument: str | float) -> float:
        try:
            value = self._number(argument) if isinstance(argument, str) else argument
        except ValueError:
            value = argument
        check_value(self._name, value, self._kind)
        return value

    def flag_type(self) -> str:
        return self._number.__name__


def define_overwrite(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """The flag `--overwrite`, for `refuse_to_replace`."""
    return flags.DEFINE_bool(
        "overwrite", False, "Replace what is there already.", flag_values=flag_values
    )


def refuse_to_replace(path: Path, overwrite: bool) -> None:
    """Called before any work: a result must not take the place of another without a word.

    Args:
        path: where a program is to write.
        overwrite: whether `--overwrite` is given.

    Raises:
        ConfigError: if there is such a file, or a folder that holds something.
    """
    is_there = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_there and not overwrite:
        raise ConfigError(
            f"{path} is there already; name another place, or give --overwrite to replace it."
        )
