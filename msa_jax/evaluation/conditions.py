"""Under which conditions results came about, so that those of others are refused, not shown.

A condition is anything that can change a result, by the name of its field: a setting as it is, and
weights, texts and tokenizers by a digest of their content, so that files may lie elsewhere. What
only changes how fast a result is there (batch sizes, where content lies) is none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msa_jax.config import ConfigError, ModelConfig
from msa_jax.data.templates import PromptBuilder
from msa_jax.engine.loading import LoadedModel, fingerprint, template_fingerprint

CONDITIONS = "conditions.json"
_blake2b = partial(hashlib.blake2b, digest_size=16)
# Of a model: how it is computed, not what.
_EXECUTION = ("remat", "scan_layers", "unroll_layers")

# Values by the name of the field that says them.
Conditions = Mapping[str, Any]


class Provenance:
    """The conditions of what is in a folder, by a key for each thing ("squad: msa", say).

    Things are kept one by one, so that a folder can hold those of several runs. They share what
    they have in common: a condition has one value in a folder, whatever depends on it.

    Attributes:
        by_key: what is kept.
    """

    def __init__(self, folder: Path, own: Mapping[str, Conditions], what: str = "results"):
        """Reads what is kept.

        Args:
            folder: it need not exist.
            own: conditions of all that this run may add, by key.
            what: the folder holds, for messages.

        Raises:
            ConfigError: if something in the folder came about under other conditions.
        """
        self._path = folder / CONDITIONS
        # As they come back from JSON.
        self._own: dict[str, Conditions] = json.loads(json.dumps(own))
        self.by_key: dict[str, Conditions] = {}
        if self._path.is_file():
            self.by_key = _read(self._path)
        other = _differing(self.by_key.values(), self._own.values())
        if other:
            raise ConfigError(
                f"{folder} holds {what} of another {_listed(other)}; name another workdir or "
                "remove it."
            )

    def keep(self, key: str) -> None:
        """Writes down the conditions of something that is about to be added."""
        if key not in self._own or key in self.by_key:
            return
        self.by_key[key] = self._own[key]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.by_key, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self._path)


def text_conditions(builder: PromptBuilder) -> dict[str, Any]:
    """How texts become tokens."""
    return {
        "tokenizer": digest_json(json.loads(builder.tokenizer.specification)),
        "template": template_fingerprint(builder.template),
    }


def model_conditions(loaded: LoadedModel) -> dict[str, Any]:
    """Weights, and all settings of the model that its answers depend on."""
    return {
        "dtype": loaded.config.dtype,
        "checkpoint": digest_json([fingerprint(loaded)["model"], model_settings(loaded.config)]),
    }


def model_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings of a model but for how fast it is computed."""
    settings = dataclasses.asdict(config)
    settings["memory"]["router_layers"] = config.router_layers
    return {name: value for name, value in settings.items() if name not in _EXECUTION}


def digest_json(value: Any) -> str:
    """A digest of a value that JSON can say."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return _blake2b(text.encode()).hexdigest()


def digest_files(path: str | os.PathLike) -> str:
    """A digest of a file's bytes, or of those of all files in a folder, in the order of names.

    Raises:
        ConfigError: if there is no such file or folder, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder; correct the name.")
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, _blake2b).hexdigest()
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return digest_json([[one.relative_to(path).as_posix(), digest_files(one)] for one in files])
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}).") from error


def _read(path: Path) -> dict[str, Conditions]:
    try:
        by_key = json.loads(path.read_text(encoding="utf-8"))
        return {key: dict(conditions.items()) for key, conditions in by_key.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not say what the results beside it belong to ({error}); name another "
            "workdir or remove it."
        ) from error


def _differing(kept: Iterable[Conditions], own: Iterable[Conditions]) -> list[str]:
    """Names of the conditions that are other ones, in the order of `own`."""
    own = {name: value for conditions in own for name, value in conditions.items()}
    other = {
        name
        for conditions in kept
        for name, value in conditions.items()
        if own.get(name, value) != value
    }
    if "dtype" in other:
        # Weights are compared in the type in which they are used.
        other.discard("checkpoint")
    return [name for name in own if name in other]


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
