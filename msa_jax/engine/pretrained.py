"""Pretrained models that a checkout brings along: an adapter and how the model's text is written.

pretrained/<name>/adapter.json, adapter*.safetensors    over a backbone (adapter.py)
pretrained/<name>/tokenizer.json, text.json             as in the workdir of a training run
pretrained/<name>/README.md                             what it is, for people
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from msa_jax.checkpoint.adapter import (
    AdaptedTensors,
    has_adapter,
    make_adapter,
    read_description,
    save_adapter,
)
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.huggingface import ParameterTensors, read_params
from msa_jax.checkpoint.tensors import SafetensorsFolder
from msa_jax.config import ConfigError, ModelConfig
from msa_jax.data.text_format import load_text_format, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.typing import PRNGKey, PyTree

_HOME = Path(__file__).parents[2] / "pretrained"
_TEXT_FILES = ("tokenizer.json", "text.json")


class Saved(NamedTuple):
    """What saving a model took and lost.

    Attributes:
        num_bytes: of the adapter, the tokenizer not counted.
        error: see `Adapter`.
    """

    num_bytes: int
    error: float


def find_pretrained(name: str) -> Path:
    """The folder of a pretrained model.

    Args:
        name: of a folder in `pretrained/` of the checkout that the package is run from, or the path
            of any such folder.

    Raises:
        ConfigError: if there is none.
    """
    for folder in (Path(name).expanduser(), _HOME / name):
        if has_adapter(folder):
            return folder
    names = ", ".join(sorted(path.parent.name for path in _HOME.glob("*/adapter.json")))
    if not names:
        raise ConfigError(
            f"pretrained model {name!r} is no folder with adapter.json, and names are those of "
            "pretrained/ in a checkout of msa_jax, which this installation is not; copy the folder "
            "of the model from there and give its path."
        )
    raise ConfigError(
        f"pretrained model {name!r} is neither one of those in {_HOME} ({names}) nor a folder with "
        "adapter.json; correct the name, or give the path of a folder that you copied here."
    )


def save_pretrained(
    folder: str | Path,
    config: ModelConfig,
    params: PyTree,
    backbone: str,
    text_folder: str | Path,
    rank: int | None = None,
    **naming: float,
) -> Saved:
    """Writes a trained model as what sets it apart from its backbone.

    Args:
        folder: made if absent.
        config: the model, with the compute type that it is to be used in.
        params: its "params" tree, in float32.
        backbone: what it was trained from, for `backbones.fetch`.
        text_folder: with the tokenizer.json and text.json of the model: the workdir of its run.
        rank: of the changes; None for changes in 8 bits.
        **naming: fields of `Naming`, to answer with unless a question says otherwise; by default
            what text.json has, which may be none.

    Raises:
        ConfigError: if a file is not there, or it or a field is not what it should be.
        CheckpointError: if the backbone is not there, or not one of this model.
    """
    folder, text_folder = Path(folder), Path(text_folder)
    for file in _TEXT_FILES:
        if not (text_folder / file).is_file():
            raise ConfigError(f"{text_folder} has no {file}; name the workdir of the training run.")
    text = load_text_format(text_folder)
    suiting = dataclasses.replace(text.naming, **naming)
    home = fetch(backbone)
    if Path(backbone).exists():
        backbone = str(home.absolute())
    trained = ParameterTensors(params, config, Path("the trained model"))
    adapter = make_adapter(trained, SafetensorsFolder(home), backbone, config, rank)
    save_text_format(
        folder, Tokenizer.load(text_folder), text.template, text.max_document_tokens, suiting
    )
    return Saved(save_adapter(folder, adapter), adapter.error)


def load_pretrained(
    folder: str | Path, config: ModelConfig, key: PRNGKey, abstract_params: PyTree = None
) -> PyTree:
    """Parameters of a pretrained model; its backbone is fetched if it is not there.

    Args:
        folder: of the model.
        config: the model that `read_description(folder)` describes.
        key: draws nothing: adapters have their routers.
        abstract_params: types and shardings, see `huggingface.read_params`.

    Raises:
        CheckpointError: if the backbone cannot be had or is another one, or the files are not those
            of this model.
    """
    backbone = SafetensorsFolder(fetch(read_description(folder).backbone))
    tensors = AdaptedTensors(folder, backbone)
    params = read_params(tensors, config, key, abstract_params)
    tensors.check_backbone()
    return params
