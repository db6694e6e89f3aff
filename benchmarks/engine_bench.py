"""What a question costs from beginning to end, and what a document costs to take in.

    python -m benchmarks.engine_bench             a small model on small memories, a minute on a CPU
    python -m benchmarks.engine_bench --full      MSA-4B and a 135M model, to 100M tokens, on a GPU

prints a record for each case (`records`). Weights and memories are random: only time is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before JAX starts: a 100M-token memory needs most of a card.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.records import OUTPUT_HELP, Recorder, short
from benchmarks.synthetic_bank import DOCUMENT_CHUNKS, SyntheticStore, random_params
from benchmarks.timing import BEYOND_CACHES, matrix_tflops, reduction_ms
from msa_jax.config import ModelConfig, from_mapping
from msa_jax.data.examples import token_block
from msa_jax.data.records import Document
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.engine import Engine
from msa_jax.engine.ingest import Ingestor
from msa_jax.engine.loading import LoadedModel
from msa_jax.memory.store import Store
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import PyTree

QUESTION_TOKENS, DOCUMENT_TOKENS, ANSWER_TOKENS = 64, 256, 128
_LARGEST_SAMPLE = 2 << 30
# What the template puts around a document, at most.
_WRAP_TOKENS = 24


def _configured(name: str) -> dict[str, Any]:
    """The model of a file of `configs/`."""
    path = Path(__file__).parents[1] / "configs" / f"{name}.py"
    return runpy.run_path(str(path))["get_config"]().model.to_dict()


# Models of files of `configs/`.
CONFIGS = {"msa_4b": "qwen3_4b", "msa_135m": "100m"}
GEOMETRIES = {
    **{name: _configured(config) for name, config in CONFIGS.items()},
    "small": dict(
        vocab_size=4096,
        num_layers=4,
        embed_dim=64,
        hidden_dim=192,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a memory.

    Attributes:
        geometry: of the model.
        memory_tokens: documents of 256 tokens.
        key_dtype: of routing keys.
        content_dtype: of content.
    """

    geometry: str
    memory_tokens: int
    key_dtype: str = "bfloat16"
    content_dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Of its record."""
        types = f"{self.key_dtype}-{self.content_dtype}"
        return f"{self.geometry}/{short(self.memory_tokens)}/{types}"


CASES = [Case("small", 65_536), Case("small", 1_048_576), Case("small", 1_048_576, "int8", "int8")]
FULL_CASES = [
    *(Case("msa_135m", size * 10**6) for size in (1, 3, 10, 30, 100)),
    Case("msa_4b", 10**6, content_dtype="int8"),
    Case("msa_4b", 10**7, content_dtype="int8"),
    Case("msa_4b", 10**8, content_dtype="int8"),
]


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes of the documentation")
    parser.add_argument("--geometry", help="cases of this model only")
    parser.add_argument("--output", help=OUTPUT_HELP)
    options = parser.parse_args()
    recorder = Recorder("benchmarks.engine_bench", None, options.output)
    cases = FULL_CASES if options.full else CASES
    wanted = [case for case in cases if options.geometry in (None, case.geometry)]
    for name, row in rows(wanted):
        recorder.show(f"engine/{name}", row, CONFIGS.get(row["geometry"]))


def rows(cases: list[Case]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and measurements of each model: encoding, and then each of its memories."""
    for geometry in dict.fromkeys(case.geometry for case in cases):
        yield f"{geometry}/encoding", {"geometry": geometry} | encoding_rate(geometry)
        for case in cases:
            if case.geometry == geometry:
                yield case.name, dataclasses.asdict(case) | query_cost(case)


def encoding_rate(geometry: str, num_batches: int = 6) -> dict[str, Any]:
    """Tokens per second of documents of 256 tokens, from token ids to arrays on the host."""
    config = _config(geometry, scan_layers=True)
    small = geometry == "small"
    layout = bank_layout(config, DOCUMENT_TOKENS)
    batch_tokens = 4096 if small else 131_072
    params = random_params(config)
    encoder = Encoder(Transformer(config), params, layout, batch_tokens=batch_tokens)
    rng = np.random.default_rng(0)
    count = num_batches * batch_tokens // DOCUMENT_TOKENS
    parts = list(rng.integers(0, config.vocab_size, (count, DOCUMENT_TOKENS), np.int32))
    encoder.encode(parts[: count // num_batches])
    start = time.perf_counter()
    encoder.encode(parts)
    seconds = time.perf_counter() - start
    peak = matrix_tflops(512 if small else 8192)
    rate = count * DOCUMENT_TOKENS / seconds
    tflops = rate * encoding_flops(config) / 1e12
    ingested = _ingested_rate(_loaded(config, params), encoder, count)
    return {
        "encoded_tokens_per_second": round(rate),
        "ingested_tokens_per_second": round(ingested),
        "tflops": round(tflops, 1),
        "matrix_tflops": round(peak, 1),
        "share_of_peak": round(tflops / peak, 3),
    }


def _ingested_rate(loaded: LoadedModel, encoder: Encoder, count: int) -> float:
    """Tokens per second from texts to a bank on disk."""
    text = _words(loaded.builder, DOCUMENT_TOKENS - _WRAP_TOKENS)
    documents = [Document(str(i), text) for i in range(count)]
    with (
        tempfile.TemporaryDirectory() as directory,
        Store.create(Path(directory, "bank"), encoder.layout, {}, {}) as store,
    ):
        start = time.perf_counter()
        counts = Ingestor(loaded, encoder, store).add(documents)
        return counts.tokens / (time.perf_counter() - start)


def encoding_flops(config: ModelConfig) -> float:
    """Operations that a token of a document needs: products of matrices, and causal attention.

    The last layer's attention and MLP are not needed, nor are embeddings.
    """
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = config.embed_dim * (heads + 2 * kv_heads)
    rest = config.embed_dim * (heads + 3 * config.hidden_dim)
    router = config.embed_dim * kv_heads * len(config.router_layers)
    attention = 2 * heads * DOCUMENT_TOKENS / 2
    layers = config.num_layers
    return 2 * (layers * projections + (layers - 1) * (rest + attention) + router)


def query_cost(case: Case) -> dict[str, Any]:
    """Seconds of each stage of a question, and of adding a document."""
    config = _config(case.geometry, scan_layers=False)
    with tempfile.TemporaryDirectory() as directory:
        engine = _engine(case, config, Path(directory, "bank"))
        builder = engine.loaded.builder
        prompt = token_block(builder, builder.prompt(_words(builder, QUESTION_TOKENS)))

        def prefill():
            session = engine.generator.start([prompt], engine.bank.memory, room=ANSWER_TOKENS)
            assert session.routing.top_docs.min() >= 0  # On the host: all is done.
            return session

        prefill_ms = _median_ms(prefill)
        decode_ms = _median_ms(lambda: prefill().complete(ANSWER_TOKENS)) - prefill_ms
        limit_ms = _weights_ms(engine.loaded.params)
        row = {
            "plan": engine.bank.plan.describe(),
            "prefill_ms": round(prefill_ms, 2),
            "decode_ms_per_token": round(decode_ms / ANSWER_TOKENS, 3),
            "weights_ms": round(limit_ms, 3),
            "share_of_weight_bandwidth": round(limit_ms * ANSWER_TOKENS / decode_ms, 3),
            "add_ms": round(_adding_ms(engine), 1),
            "retrieve_ms": round(_median_ms(lambda: engine.retrieve("what changed?")), 2),
            "peak_device_bytes": _peak_bytes(),
        }
        engine.close()
    return row


def _adding_ms(engine: Engine, rounds: int = 8) -> float:
    """From the call to the moment when the next question finds the document."""
    text = _words(engine.loaded.builder, DOCUMENT_TOKENS - _WRAP_TOKENS)
    numbers = iter(range(rounds + 2))

    def add():
        key = f"added-{next(numbers)}"
        engine.add([Document(key, text)])
        return key

    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        key = add()
        times.append(1e3 * (time.perf_counter() - start))
        (found,) = engine.retrieve("what changed?", 1, {"key": key})
        assert found.key == key
    return statistics.median(times[1:])


def _engine(case: Case, config: ModelConfig, directory: Path) -> Engine:
    loaded = _loaded(config, random_params(config))
    layout = bank_layout(config, DOCUMENT_TOKENS, case.key_dtype, case.content_dtype)
    tokens_per_document = DOCUMENT_CHUNKS * layout.pooling_kernel_size
    num_chunks = case.memory_tokens // tokens_per_document * DOCUMENT_CHUNKS
    return Engine(loaded, SyntheticStore(directory, layout, num_chunks))


def _loaded(config: ModelConfig, params: PyTree) -> LoadedModel:
    template, tokenizer = "msa_4b", Tokenizer.load("docs-4k")
    builder = PromptBuilder(TEMPLATES[template], tokenizer, config.memory)
    return LoadedModel(config, params, tokenizer, template, builder, "", "docs-4k")


def _config(geometry: str, scan_layers: bool) -> ModelConfig:
    for_inference = {"dtype": "bfloat16", "remat": "nothing", "scan_layers": scan_layers}
    return from_mapping(ModelConfig, GEOMETRIES[geometry] | for_inference)


def _words(builder: PromptBuilder, num_tokens: int) -> str:
    """A text of so many tokens."""
    words = "the lamp of an old harbour was lit by whoever came last to it " * num_tokens
    tokens = builder.tokenizer.encode(words)[:num_tokens]
    return builder.tokenizer.decode(tokens)


def _median_ms(call: Callable[[], Any], rounds: int = 9) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _weights_ms(params: PyTree) -> float:
    """Milliseconds to read the weights that a token needs, at the speed of a plain reduction.

    Routers are not needed, and of an embedding table that is not the output projection, one row.
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    untied = any(path.startswith("lm_head") for path in paths)
    needed = sum(
        x.nbytes
        for path, x in paths.items()
        if "router" not in path and not (untied and path.startswith("embedder"))
    )
    # As many bytes at once, if that is feasible: small arrays are read more slowly.
    sample_bytes = min(max(needed, BEYOND_CACHES), _LARGEST_SAMPLE)
    sample = jnp.ones((sample_bytes // 4096, 2048), jnp.bfloat16)
    return needed / sample.nbytes * reduction_ms([sample])


def _peak_bytes() -> int | None:
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


if __name__ == "__main__":
    main()
