"""What 8-bit routing keys lose, on the keys and questions of a trained model.

    python -m msa_jax.train --config=configs/tiny.py
    python -m benchmarks.quantized_recall runs/tiny

Encodes the run's held-out documents into one memory, asks its held-out questions, and compares,
per router layer, with the 16 best documents by the bfloat16 keys. 1x is the share of those among
the 16 best by 8-bit keys; 2x and 4x their share among the best 32 and 64, which is the recall of
scanning 8-bit keys for so many candidates and rescoring those exactly; "routed" is the recall of
`route`, which does just that with 4x.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.records import OUTPUT_HELP, Recorder
from msa_jax.config import from_mapping
from msa_jax.core.routing import routing_queries
from msa_jax.core.segments import QUERY, TokenBlock
from msa_jax.data.examples import token_block
from msa_jax.data.pipeline import DataConfig, TextDataset
from msa_jax.engine.encode import encode_documents
from msa_jax.engine.loading import load_model
from msa_jax.kernels.routing import RoutingKeys, quantize_keys, route
from msa_jax.modules.attention import RouterProjector
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Bool, Float, Int, PyTree

DTYPES = ("int8", "float8_e4m3fn")
CANDIDATES = (1, 2, 4)
QUESTIONS_AT_ONCE = 32


def load_run(workdir: Path) -> tuple[Transformer, PyTree, DataConfig]:
    """The best model of a run and the settings of its data."""
    loaded = load_model(workdir)
    settings = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["config"]["data"]
    return loaded.model, loaded.params, from_mapping(DataConfig, settings, "data")


def encode(model: Transformer, params: PyTree, dataset: TextDataset) -> Memory:
    """All documents of a dataset as one memory."""
    rng = np.random.default_rng(0)
    ids = 1 + rng.choice(dataset.data.id_space - 1, size=len(dataset.parts), replace=False)
    document = dataset.builder.document
    documents = [document(*pair) for pair in zip(ids.tolist(), dataset.parts, strict=True)]
    return encode_documents(model, params, documents, dataset.data.row_tokens)


def prompts_of(dataset: TextDataset) -> Iterator[TokenBlock]:
    """All questions, in whole batches; questions that would not fill one are left out."""
    prompts = [dataset.builder.prompt(question.question) for question in dataset.questions]
    length = max(sum(len(piece.tokens) for piece in pieces) for pieces in prompts)
    blocks = [token_block(dataset.builder, pieces, length) for pieces in prompts]
    size = min(QUESTIONS_AT_ONCE, len(blocks))
    for start in range(0, len(blocks) - size + 1, size):
        yield jax.tree.map(lambda *x: np.stack(x)[None], *blocks[start : start + size])


def layer_queries(
    model: Transformer, params: PyTree, memory: Memory, prompts: TokenBlock
) -> list[Float[Array, "B T D"]]:
    """Grouped routing queries of each router layer, while the model answers from `memory`."""
    config, found = model.config, []

    def listen(call, args, kwargs, context):
        out = call(*args, **kwargs)
        is_query = isinstance(context.module, RouterProjector) and context.method_name == "query"
        if is_query and not isinstance(out, jax.core.Tracer):
            found.append(out[0])
        return out

    num_groups, batch, length = prompts.tokens.shape
    cache = init_cache(config, num_groups, batch, length)
    # Without jit or remat the scan over layers is a loop, whose every layer can be listened to.
    plain = Transformer(dataclasses.replace(config, remat="nothing"))
    with jax.disable_jit(), nn.intercept_methods(listen):
        plain.apply({"params": params}, prompts, cache, memory, method="prefill")
    similarity = config.memory.router_similarity
    grouped = [routing_queries(heads, config.num_kv_heads, similarity) for heads in found]
    return [queries.reshape(*queries.shape[:2], -1) for queries in grouped]


def layer_keys(memory: Memory, index: int) -> Float[Array, "C D"]:
    """Routing keys of one of the router layers."""
    return memory.layers.router_keys.values[index, 0]


def recalls(
    queries: Float[Array, "B T D"],
    query_mask: Bool[Array, "B T"],
    keys: Float[Array, "C D"],
    chunk_doc: Int[Array, " C"],
    dtype: str,
    *,
    top_k_docs: int,
    max_document_chunks: int,
) -> dict[str, np.ndarray]:
    """Recall of the best documents by `keys`, per query, for every column of the table."""

    def search(keys, count):
        limits = {"top_k_docs": count, "max_document_chunks": max_document_chunks}
        return np.asarray(route(queries, query_mask, keys, chunk_doc, **limits)[1])

    coded = quantize_keys(keys, dtype)
    best = search(RoutingKeys(keys), top_k_docs)
    candidates = search(RoutingKeys(coded.values, coded.scale), max(CANDIDATES) * top_k_docs)
    columns = {f"{times}x": candidates[:, : times * top_k_docs] for times in CANDIDATES}
    columns["routed"] = search(coded, top_k_docs)
    return {name: _recall(found, best) for name, found in columns.items()}


def _recall(found: Int[np.ndarray, "B n"], best: Int[np.ndarray, "B k"]) -> np.ndarray:
    return (found[:, :, None] == best[:, None, :]).any(axis=1).mean(axis=1)


def measure(
    model: Transformer, params: PyTree, dataset: TextDataset
) -> dict[tuple[int, str], dict[str, float]]:
    """Mean recalls over all questions, by router layer and type."""
    memory = jax.device_put(encode(model, params, dataset))
    chunk_doc = memory.index.chunk_doc[0]
    limits = {
        "top_k_docs": min(model.config.memory.top_k_docs, memory.index.num_documents),
        "max_document_chunks": memory.index.max_document_chunks,
    }
    rows: dict[tuple[int, str], list[dict[str, np.ndarray]]] = {}
    for prompts in prompts_of(dataset):
        mask = jnp.asarray(prompts.doc_ids[0] == QUERY)
        queries = layer_queries(model, params, memory, prompts)
        for index, layer in enumerate(model.config.router_layers):
            # As a memory that is too large for float32 keeps them.
            keys = layer_keys(memory, index).astype(jnp.bfloat16)
            for dtype in DTYPES:
                found = recalls(queries[index], mask, keys, chunk_doc, dtype, **limits)
                rows.setdefault((layer, dtype), []).append(found)
    return {
        row: {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
        for row, parts in rows.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="of a finished run with an evaluation")
    parser.add_argument("--documents", type=Path, help="default: the demo's held-out documents")
    parser.add_argument("--questions", type=Path, help="default: the demo's held-out questions")
    parser.add_argument("--output", help=OUTPUT_HELP)
    options = parser.parse_args(arguments)
    recorder = Recorder("benchmarks.quantized_recall", arguments, options.output)
    files = {
        kind: str(getattr(options, kind) or options.workdir / "corpus" / f"heldout.{kind}.jsonl")
        for kind in ("documents", "questions")
    }
    model, params, data = load_run(options.workdir)
    data = dataclasses.replace(data, **files, shuffle_labels=False)
    dataset = TextDataset.load(data, model.config.memory)
    print(f"{len(dataset.parts)} documents, {len(dataset.questions)} questions")
    rows = measure(model, params, dataset)
    columns = list(next(iter(rows.values())))
    print("| layer | keys | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 2) + "|")
    for (layer, dtype), row in sorted(rows.items()):
        recorder.keep(f"quantized_recall/layer_{layer}/{dtype}", row, "tiny")
        print(f"| {layer} | {dtype} | " + " | ".join(f"{x:.4f}" for x in row.values()) + " |")


if __name__ == "__main__":
    main()
