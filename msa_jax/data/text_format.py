"""How a model's text is written, kept with its checkpoint so that nobody has to remember it.

A folder with a model has `tokenizer.json` and, if it was trained here, `text.json` with the name
of the template, the length of the documents that the model was trained on and, if somebody has
measured it, the router temperature that suits the model when it names documents.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from msa_jax.config import ConfigError
from msa_jax.data.templates import TEMPLATES
from msa_jax.data.tokenizer import Tokenizer

_TOKENIZER = "tokenizer.json"
_SETTINGS = "text.json"


class TextFormat(NamedTuple):
    """What a folder says about the text of its model; None where it says nothing.

    Attributes:
        has_tokenizer: whether `Tokenizer.load` finds one in the folder.
        template: name in `TEMPLATES`.
        max_document_tokens: longest document in training, id and template tokens included.
        router_temperature: for `InterleaveConfig`, where a question does not come with one.
    """

    has_tokenizer: bool
    template: str | None = None
    max_document_tokens: int | None = None
    router_temperature: float | None = None


def save_text_format(
    folder: str | Path,
    tokenizer: Tokenizer,
    template: str,
    max_document_tokens: int | None,
    router_temperature: float | None = None,
) -> None:
    """Writes what `load_text_format` reads; a copy of the tokenizer, whose file may move.

    Raises:
        ConfigError: if `router_temperature` is not a positive number.
    """
    folder = Path(folder)
    settings = {"template": template, "max_document_tokens": max_document_tokens}
    if router_temperature is not None:
        _check_router_temperature(router_temperature, folder / _SETTINGS)
        settings["router_temperature"] = router_temperature
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
        found = TextFormat(
            has_tokenizer,
            settings["template"],
            settings["max_document_tokens"],
            settings.get("router_temperature"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say which template and max_document_tokens the model was trained "
            f"with ({error!r}); restore it or train again."
        ) from error
    if found.template not in TEMPLATES:
        raise ConfigError(
            f"{path} names the template {found.template!r}, but there are only "
            f"{', '.join(TEMPLATES)}; correct it."
        )
    if found.router_temperature is not None:
        _check_router_temperature(found.router_temperature, path)
    return found


def _check_router_temperature(value: object, path: Path) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0.0 < value < float("inf"):
        raise ConfigError(
            f"{path}: router_temperature must be a positive number, not {value!r}; correct it or "
            "leave it out."
        )


def _replace(path: Path, text: str) -> None:
    """Writes a file so that it holds either the old text or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
