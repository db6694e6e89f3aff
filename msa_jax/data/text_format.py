"""How a model's text is written, kept with its checkpoint so that nobody has to remember it.

A folder with a model has `tokenizer.json` and, if it was trained here, `text.json` with the name
of the template, the length of the documents that the model was trained on and, if somebody has
measured it, how much its routers should count when it names documents.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msa_jax.config import ConfigError
from msa_jax.data.templates import TEMPLATES
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.fields import Count, NonNegative, Positive, check_fields, check_value

_TOKENIZER = "tokenizer.json"
_SETTINGS = "text.json"


@dataclasses.dataclass(frozen=True)
class Naming:
    """How much a model's routers count when it names documents; None where nobody knows.

    Attributes:
        router_temperature: see `InterleaveConfig`, of which a question may have its own.
        margin: likewise.
    """

    router_temperature: Positive | None = None
    margin: NonNegative | None = None

    def __post_init__(self):
        check_fields(self)

    @property
    def known(self) -> dict[str, float]:
        """What is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class TextFormat(NamedTuple):
    """What a folder says about the text of its model; None where it says nothing.

    Attributes:
        has_tokenizer: whether `Tokenizer.load` finds one in the folder.
        template: name in `TEMPLATES`.
        max_document_tokens: longest document in training, id and template tokens included.
        naming: what suits the model.
    """

    has_tokenizer: bool
    template: str | None = None
    max_document_tokens: int | None = None
    naming: Naming = Naming()


def save_text_format(
    folder: str | Path,
    tokenizer: Tokenizer,
    template: str,
    max_document_tokens: int | None,
    naming: Naming = Naming(),
) -> None:
    """Writes what `load_text_format` reads; a copy of the tokenizer, whose file may move."""
    folder = Path(folder)
    settings = {"template": template, "max_document_tokens": max_document_tokens} | naming.known
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / _TOKENIZER, tokenizer.specification)
    _replace(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")


def load_text_format(folder: str | Path) -> TextFormat:
    """Reads how the model of a folder writes text.

    Raises:
        ConfigError: if `text.json` is not what `save_text_format` writes.
    """
    folder = Path(folder)
    has_tokenizer, path = (folder / _TOKENIZER).is_file(), folder / _SETTINGS
    if not path.is_file():
        return TextFormat(has_tokenizer)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        template, max_document_tokens = settings["template"], settings["max_document_tokens"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} does not say which template and max_document_tokens the model was trained "
            f"with ({error!r}); restore it or train again."
        ) from error
    check_value(f"{path}: max_document_tokens", max_document_tokens, Count | None)
    check_value(f"{path}: template", template, str)
    if template not in TEMPLATES:
        raise ConfigError(
            f"{path} names the template {template!r}, but there are only "
            f"{', '.join(TEMPLATES)}; correct it."
        )
    return TextFormat(has_tokenizer, template, max_document_tokens, _naming(settings, path))


def _naming(settings: Mapping[str, Any], path: Path) -> Naming:
    try:
        return Naming(**{x.name: settings.get(x.name) for x in dataclasses.fields(Naming)})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _replace(path: Path, text: str) -> None:
    """Writes a file so that it holds either the old text or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
