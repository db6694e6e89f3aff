"""Agreement with the upstream PyTorch implementation, number by number.

    python -m tests.golden_parity DIR [DIR ...]

Each folder holds one model and what upstream computes with it: `config.json`,
`model.safetensors`, `train_forward.npz` (training forward, losses, gradients) and
`inference.npz` (encode, prefill, decode: call by call, and on the way of `golden_engine`). For each
quantity the largest error is printed relative to the largest value; the exit code is 1 if any is
above 1e-4.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.checkpoint import huggingface
from msa_jax.config import ModelConfig
from msa_jax.core import losses
from msa_jax.core.segments import PADDING, TEMPLATE, TokenBlock
from msa_jax.modules.state import LayerCache
from msa_jax.modules.transformer import Transformer, init_cache
from tests.golden_engine import compare_engine

TOLERANCE = 1e-4
IGNORED_LABEL = -100
Comparison = tuple[str, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Example:
    """One upstream sequence taken apart: where its tokens are in our rows.

    Attributes:
        memory_at: index in the upstream sequence of every memory slot, -1 for padding.
        active_at: index in the upstream sequence of every active token.
    """

    memory_at: np.ndarray
    active_at: np.ndarray


def split_example(doc_ids: np.ndarray, valid: np.ndarray, pooling_size: int) -> Example:
    """Documents to one row in which each starts at a multiple of the pooling size."""
    slots: list[int] = []
    for document in range(1, doc_ids.max() + 1):
        slots += [-1] * (-len(slots) % pooling_size)
        slots += np.flatnonzero(doc_ids == document).tolist()
    slots += [-1] * (-len(slots) % pooling_size)
    return Example(np.array(slots), np.flatnonzero((doc_ids <= 0) & valid))


def token_block(examples: list[np.ndarray], tokens, doc_ids, positions) -> TokenBlock:
    """Gathers upstream tokens by index, one row per example; padded to the longest."""
    length = max(len(indices) for indices in examples)

    def gather(source, fill):
        rows = np.full((len(examples), 1, length), fill, np.int32)
        for row, indices, values in zip(rows[:, 0], examples, source, strict=True):
            row[: len(indices)] = np.where(indices >= 0, values[indices], fill)
        return jnp.asarray(rows)

    return TokenBlock(gather(tokens, 0), gather(doc_ids, PADDING), gather(positions, 0))


def compiled_calls(config: ModelConfig, params) -> Callable[..., Any]:
    """`Transformer.apply` with these parameters, compiled once for each method and shape."""
    static = ("num_documents", "keep_hidden_states", "method")
    return partial(jax.jit(Transformer(config).apply, static_argnames=static), {"params": params})


def compare_training(config: ModelConfig, upstream: dict, params, golden) -> Iterator[Comparison]:
    """The training forward: hidden states, logits, scores, losses and gradients."""
    valid = golden["attention_mask"] == 1
    pooling_size = config.memory.pooling_kernel_size
    parts = [
        split_example(doc_ids, mask, pooling_size)
        for doc_ids, mask in zip(golden["doc_ids"], valid, strict=True)
    ]
    source = (golden["input_ids"], golden["doc_ids"], golden["position_ids"])
    memory = token_block([part.memory_at for part in parts], *source)
    active = token_block([part.active_at for part in parts], *source)
    num_documents = int(golden["doc_ids"].max())
    call = compiled_calls(config, params)

    def to_upstream(ours_memory, ours_active):
        out = np.zeros((*valid.shape, ours_memory.shape[-1]), np.float32)
        for b, part in enumerate(parts):
            slots = np.flatnonzero(part.memory_at >= 0)
            out[b, part.memory_at[slots]] = ours_memory[b, 0, slots]
            out[b, part.active_at] = ours_active[b, 0, : len(part.active_at)]
        return out[valid]

    out = call(memory, active, num_documents=num_documents, keep_hidden_states=True)
    for layer, states in enumerate(zip(*out.hidden_states, strict=True)):
        yield f"hidden_{layer}", to_upstream(*states), golden[f"hidden_{layer}"][valid]
    yield "last_hidden", to_upstream(*states), golden["last_hidden"][valid]
    logits = [call(x, method="logits") for x in states]
    yield "logits", to_upstream(*logits), golden["logits"][valid]

    for scores, layer in zip(out.doc_scores, config.router_layers, strict=True):
        theirs = golden[f"doc_scores_layer{layer}"][:, 1:]
        exists = np.isfinite(theirs)
        np.testing.assert_array_equal(np.isfinite(scores[:, 0]), exists)
        yield f"doc_scores_layer{layer}", scores[:, 0][exists], theirs[exists]

    total, terms, gradients = training_loss(config, upstream, params, memory, active, golden, parts)
    for name, value in (*terms.items(), ("loss", total)):
        yield name, value, golden[name]
    ours = huggingface.to_huggingface(gradients, config)
    for name in golden:
        if name.startswith("grad/"):
            yield name, ours[name.removeprefix("grad/")], golden[name]


def training_loss(config, upstream, params, memory, active, golden, parts):
    """Total loss, its terms, and its gradient with upstream's weights."""
    targets = np.full(active.tokens.shape, IGNORED_LABEL)
    for b, part in enumerate(parts):
        targets[b, 0, : len(part.active_at) - 1] = golden["labels"][b][part.active_at[1:]]
    num_documents = int(golden["doc_ids"].max())
    positives = np.zeros((len(parts), 1, num_documents), bool)
    for b in range(len(parts)):
        labels = golden[f"aux_labels_{b}"]
        positives[b, 0, : len(labels)] = labels == 1
    msa = upstream["msa_config"]
    model = Transformer(config)

    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out = model.apply({"params": params}, memory, active, num_documents)
        unembedding = model.apply({"params": params}, method="unembedding")
        mask = targets != IGNORED_LABEL
        lm_sum, count = losses.chunked_lm_loss(
            out.hidden, unembedding, np.where(mask, targets, 0), mask, block_size=32
        )
        aux, _ = losses.info_nce(
            out.doc_scores,
            np.broadcast_to(positives, out.doc_scores.shape),
            temperature=msa["infonce_loss_temp"],
            decoupled=msa["aux_loss_method"] == "INFONCE_DECOUPLE",
        )
        terms = {"lm_loss": lm_sum / count, "aux_loss": aux.mean()}
        weights = (msa["lmloss_weigth"], msa["auxloss_weight"])
        return sum(w * t for w, t in zip(weights, terms.values(), strict=True)), terms

    (total, terms), gradients = jax.jit(loss)(params)
    return total, terms, gradients


def compare_inference(config: ModelConfig, params, golden) -> Iterator[Comparison]:
    """Encode, prefill, and greedy decoding step by step."""
    head = golden["s1_doc_ids"] == TEMPLATE
    part = split_example(golden["s1_doc_ids"], head, config.memory.pooling_kernel_size)
    source = [golden[f"s1_{name}_ids"][None] for name in ("input", "doc", "position")]
    memory = token_block([part.memory_at], *source)
    template = token_block([part.active_at], *source)
    num_documents = int(golden["s1_doc_ids"].max())
    call = compiled_calls(config, params)

    training = call(memory, template, num_documents=num_documents, keep_hidden_states=True)
    hidden = training.hidden_states
    ours = np.zeros_like(golden["s1_last_hidden"][0])
    slots = np.flatnonzero(part.memory_at >= 0)
    ours[part.memory_at[slots]] = hidden[0][-1, 0, 0, slots]
    ours[part.active_at] = hidden[1][-1, 0, 0]
    yield "s1_last_hidden", ours, golden["s1_last_hidden"][0]

    encoded = call(memory, num_documents=num_documents, method="encode")
    yield from compare_pooled(config, encoded, golden)

    doc_ids = np.where(golden["s2_attention_mask"] == 1, golden["s2_doc_ids"], PADDING)
    batch_size, length = doc_ids.shape
    steps = golden["decode_tokens"].shape[1]
    cache = init_cache(config, 1, batch_size, template.tokens.shape[-1] + length + steps)
    heads = jax.tree.map(lambda x: jnp.repeat(x, batch_size, axis=1), template)
    _, cache, _ = call(heads, cache, method="prefill")
    yield from compare_template(config, cache, golden)

    queries = TokenBlock(
        *(
            jnp.asarray(x)[None]
            for x in (golden["s2_input_ids"], doc_ids, golden["s2_position_ids"])
        )
    )
    hidden, cache, routing = call(queries, cache, encoded, method="prefill")
    present = doc_ids != PADDING
    logits = call(hidden, method="logits")[0]
    yield "s2_logits", logits[present], golden["s2_logits"][present]
    for layer, scores, docs in zip(
        config.router_layers, routing.top_scores, routing.top_docs, strict=True
    ):
        yield f"top_scores_layer{layer}", scores[0], golden[f"top_scores_layer{layer}"]
        yield f"top_docs_layer{layer}", docs[0] + 1, golden[f"top_docs_layer{layer}"]

    position = golden["s2_position_ids"][:, -1]
    yield "decode_tokens[0]", logits[:, -1].argmax(-1), golden["decode_tokens"][:, 0]
    for step in range(steps):
        token = golden["decode_tokens"][:, step]
        logits, cache = call(token[None], (position + step + 1)[None], cache, method="decode")
        yield f"decode_logits[{step}]", logits[0], golden["decode_logits"][:, step]


def compare_pooled(config: ModelConfig, encoded, golden) -> Iterator[Comparison]:
    """Pooled keys, values and routing keys, chunk by chunk."""
    chunks = np.asarray(encoded.index.chunk_doc[0]) >= 0
    yield "pooled_doc_ids", encoded.index.chunk_doc[0][chunks] + 1, golden["pooled_doc_ids"]
    layers = encoded.layers
    content = layers.content.values
    keys, values = content[..., 0, :, :], content[..., 1, :, :]
    router_keys = layers.router_keys.values.reshape(keys.shape)
    arrays = {"k": keys, "v": values, "router_k": router_keys}
    for name, stacked in arrays.items():
        for layer, ours in zip(config.router_layers, stacked, strict=True):
            theirs = golden[f"pooled_{name}_layer{layer}"][0].swapaxes(0, 1)
            yield f"pooled_{name}_layer{layer}", ours[0][chunks], theirs


def compare_template(config: ModelConfig, cache, golden) -> Iterator[Comparison]:
    """Keys and values of the template head in every layer."""
    for name, start, stop in config.layer_runs:
        run: LayerCache = cache.runs[name]
        for layer in range(start, stop):
            for kind, ours in (("k", run.keys), ("v", run.values)):
                theirs = golden[f"template_{kind}_layer{layer}"][0].swapaxes(0, 1)
                yield (
                    f"template_{kind}_layer{layer}",
                    ours[layer - start, 0, 0, : len(theirs)],
                    theirs,
                )


def relative_error(ours, theirs) -> float:
    """Largest error relative to the largest value of the reference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {ours.shape} here, {theirs.shape} upstream.")
    error = np.abs(ours - theirs).max(initial=0.0)
    return float(error / max(np.abs(theirs).max(initial=0.0), np.finfo(np.float32).tiny))


def compare_folder(directory: Path) -> Iterator[tuple[str, float]]:
    """Yields each quantity of a golden folder with its relative error."""
    config = huggingface.read_model_config(directory, dtype="float32")
    upstream = huggingface.read_json(directory / "config.json")
    params = huggingface.load_params(directory, config, jax.random.key(0))
    training = dict(np.load(directory / "train_forward.npz"))
    inference = dict(np.load(directory / "inference.npz"))
    for name, ours, theirs in compare_training(config, upstream, params, training):
        yield f"train_forward/{name}", relative_error(ours, theirs)
    for name, ours, theirs in compare_inference(config, params, inference):
        yield f"inference/{name}", relative_error(ours, theirs)
    for name, ours, theirs in compare_engine(config, params, inference):
        yield f"engine/{name}", relative_error(ours, theirs)


def main(directories: list[str]) -> int:
    """Prints a table per folder; returns 1 if any error is above the tolerance."""
    worst = 0.0
    jax.config.update("jax_default_matmul_precision", "highest")
    for directory in directories:
        print(directory)
        for name, error in compare_folder(Path(directory)):
            verdict = "" if error <= TOLERANCE else "  ABOVE 1e-4"
            print(f"  {name:<60} {error:9.2e}{verdict}")
            worst = max(worst, error if error == error else np.inf)
    print(f"largest relative error {worst:.2e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
