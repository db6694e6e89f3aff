"""Llama models in GGUF files: the configuration, the parameters and the tokenizer.

    file = GgufFile("SmolLM2-135M-Instruct.Q4_1.gguf")
    config = file.model_config(dtype="float32")
    params = read_params(file, config, jax.random.key(0))
    tokenizer = Tokenizer(file.tokenizer())

Tensors have their Hugging Face names and layouts, so that `key_map.py` serves this format too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from gguf.quants import dequantize
from tokenizers import decoders, models, pre_tokenizers

from msa_jax import lfs
from msa_jax.checkpoint.hf_config import config_from_values
from msa_jax.checkpoint.tensors import CheckpointError
from msa_jax.config import ConfigError, ModelConfig

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
}

# Special tokens of the templates that SmolLM2 lacks, and those of its own that they replace: names
# of files and of repositories, which only its training on code used. The embeddings of the other
# spare tokens equal one another, so that a model whose embedding is frozen could not choose.
_REPLACED = {"<repo_name>": "<|object_ref_end|>", "<filename>": "<End-of-Retrieve>"}


class GgufFile:
    """An open GGUF file of a Llama model; a `TensorSource`.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path):
        """Maps the file.

        Raises:
            CheckpointError: if it is no GGUF file, or holds another kind of model.
        """
        self.path = Path(path)
        try:
            self._reader = gguf.GGUFReader(self.path)
        except (OSError, ValueError, IndexError) as error:
            problem = lfs.advice(path) or error
            raise CheckpointError(f"{path} cannot be read as GGUF: {problem}.") from error
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise CheckpointError(
                f"{path} holds a model of architecture {architecture!r}; only 'llama' is supported."
            )
        self._tensors = {_hugging_face_name(t.name): t for t in self._reader.tensors}
        self._num_heads = {
            "self_attn.q_proj.weight": self._of_model("attention.head_count"),
            "self_attn.k_proj.weight": self._num_kv_heads(),
        }

    @property
    def names(self) -> Iterable[str]:
        """Hugging Face names of the tensors."""
        return self._tensors.keys()

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor as it is read."""
        kind = self._tensors[name].tensor_type.name
        # GGUF lists the axes from the innermost outward. Blocks of a few bits are read as float32.
        shape = tuple(int(size) for size in reversed(self._tensors[name].shape))
        return shape, kind if kind.startswith("I") and kind[1:].isdigit() else "F32"

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, with the rows of q and k in the order of Hugging Face."""
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}, which the gguf "
                "library cannot decode; use a file with another quantisation."
            ) from error
        num_heads = next((n for end, n in self._num_heads.items() if name.endswith(end)), None)
        return values if num_heads is None else _halves_together(values, num_heads)

    def model_config(self, **overrides: Any) -> ModelConfig:
        """The configuration of the model, with fields of `ModelConfig` that replace the file's.

        Raises:
            ConfigError: for a setting that this package lacks.
        """
        scaling = self._of_model("rope.scaling.type", "none")
        if scaling != "none":
            raise ConfigError(f"{self.path}: rope scaling {scaling!r} is not supported.")
        values = {ours: self._of_model(theirs) for ours, theirs in _SIZES.items()}
        head_dim = values["hidden_size"] // values["num_attention_heads"]
        values |= {
            "model_type": "llama",
            "vocab_size": self.header("model.embed_tokens.weight")[0][0],
            "num_key_value_heads": self._num_kv_heads(),
            "head_dim": self._of_model("attention.key_length", head_dim),
            "rope_theta": _decimal(self._of_model("rope.freq_base", 10_000.0)),
            "rms_norm_eps": _decimal(self._of_model("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }
        return config_from_values(values, self.path, **overrides)

    def tokenizer(self) -> str:
        """The tokenizer as the text of a `tokenizers` JSON file.

        Special tokens that the templates of this package need and the file lacks take the place of
        special tokens of its own that text never has, so that the vocabulary keeps its size.

        Raises:
            ConfigError: for a kind of tokenizer other than SmolLM2's.
        """
        kind = (self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise ConfigError(
                f"{self.path}: a tokenizer of the kind {'/'.join(kind)} is not supported, only "
                "gpt2/smollm; name a tokenizer.json instead."
            )
        tokens = self._field("tokenizer.ggml.tokens")
        absent = {old: new for old, new in _REPLACED.items() if new not in tokens}
        tokens = [absent.get(token, token) for token in tokens]
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        try:
            model = models.BPE(vocab=vocabulary, merges=merges)
        except Exception as error:  # the backend raises plain Exception
            raise ConfigError(f"{self.path}: the tokenizer cannot be used ({error}).") from error
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = self._field("tokenizer.ggml.token_type")
        tokenizer.add_special_tokens(
            [
                tokenizers.AddedToken(token, normalized=False, special=True)
                for token, type_ in zip(tokens, types, strict=True)
                if type_ == gguf.TokenType.CONTROL
            ]
        )
        return tokenizer.to_str()

    def _num_kv_heads(self) -> int:
        heads = self._of_model("attention.head_count")
        return self._of_model("attention.head_count_kv", heads)

    def _of_model(self, name: str, default: Any = None) -> Any:
        return self._field(f"llama.{name}", default)

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.get_field(name)
        try:
            value = default if field is None else field.contents()
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error}).") from error
        if value is None:
            raise CheckpointError(f"{self.path} lacks {name}; use a complete GGUF file.")
        return value


def _hugging_face_name(name: str) -> str:
    """Names that no Llama model has stay as they are, for a loader to complain about."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"
    return _NAMES.get(name, name)


def _halves_together(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes the order in which GGUF has the rows of each head: the two of a rotation in turn."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _decimal(value: float) -> float:
    """The number that somebody wrote before it was stored as float32: 1e-5, not 9.9999997e-6."""
    return float(str(np.float32(value)))
