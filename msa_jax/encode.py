"""Encodes documents into a bank, a new one or one that is there already.

    python -m msa_jax.encode --checkpoint=runs/tiny --documents=docs.jsonl --bank=bank

Documents with a key that the bank has replace what it has; those that did not change cost nothing,
so the same command also goes on after an interruption. With `--prune`, documents of the bank that
are not among those given are removed. `--estimate` only says how much memory it would all take.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from msa_jax import cli
from msa_jax.checkpoint.key_map import parameter_shapes
from msa_jax.config import ConfigError, ModelConfig
from msa_jax.data.parts import PartWriter
from msa_jax.data.sources import DocumentSource, open_source
from msa_jax.engine.encode import Encoder
from msa_jax.engine.ingest import (
    DEFAULT_DOCUMENT_TOKENS,
    Counts,
    Ingestor,
    create_bank,
    new_layout,
)
from msa_jax.engine.loading import LoadedModel, describe_model, fingerprint, load_model
from msa_jax.fields import Count, Within
from msa_jax.flag_types import define_number
from msa_jax.memory.chunks import DTYPES, Layout
from msa_jax.memory.store import Store
from msa_jax.memory.tiers import Budget, format_bytes, plan_tiers
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.terminal import show

# Documents that are split at once for an estimate.
_ESTIMATED_AT_ONCE = 1024

FLAGS = flags.FlagValues()


def _string(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_string(name, None, help_string, flag_values=FLAGS)


def _type(name: str, help_string: str) -> flags.FlagHolder:
    return flags.DEFINE_enum(name, None, DTYPES, help_string, flag_values=FLAGS)


_BANK = _string("bank", "Directory of the bank; made if there is none.")
_DOCUMENTS = _string(
    "documents",
    "A JSON Lines file ({id, text, title?, metadata?}), a folder of text files, or - for JSON "
    "Lines on standard input.",
)
_CHECKPOINT = _string(
    "checkpoint",
    "Workdir of a training run, or a Hugging Face folder; by default what the bank was made with.",
)
_TOKENIZER = _string("tokenizer", "Packaged name or path; by default the checkpoint's own.")
_TEMPLATE = _string("template", "How documents are written; by default as in training.")
_KEY_DTYPE = _type("key_dtype", "Of routing keys; by default the model's compute type.")
_CONTENT_DTYPE = _type("content_dtype", "Of pooled keys and values; by default likewise.")
_MAX_DOCUMENT_TOKENS = define_number(
    "max_document_tokens",
    None,
    Count,
    "Longer documents are split into parts; by default as in training, else "
    f"{DEFAULT_DOCUMENT_TOKENS}.",
    FLAGS,
)
_PRUNE = flags.DEFINE_bool(
    "prune",
    False,
    "Remove from the bank what is not among the documents given.",
    flag_values=FLAGS,
)
_ESTIMATE = flags.DEFINE_bool(
    "estimate", False, "Say how much memory it takes, and stop.", flag_values=FLAGS
)
_MEMORY_TOKENS = define_number(
    "memory_tokens",
    None,
    Annotated[int, Within(low=1, high=10**15)],
    "With --estimate and no documents: tokens of the memory.",
    FLAGS,
)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    if _ESTIMATE.value:
        show(estimate())
        return
    bank = cli.given(_BANK, "the directory of the bank")
    source = open_source(cli.given(_DOCUMENTS, "a JSON Lines file, a folder or -"))
    started = time.perf_counter()
    loaded, mesh = _load(_facts(bank))
    with _open_bank(bank, loaded) as store:
        encoder = Encoder(loaded.model, loaded.params, store.layout, mesh)
        with cli.EncodingBar(source) as bar:
            ingestor = Ingestor(loaded, encoder, store)
            take = ingestor.sync if _PRUNE.value else ingestor.add
            counts = take(source, bar.planned, bar.encoded)
        show(_summary(store, counts, time.perf_counter() - started))


def estimate() -> str:
    """What the documents, or so many tokens, would take, before anything is allocated.

    Raises:
        ConfigError: if there is neither, or the model cannot be found.
        RecordError: for a bad record.
    """
    loaded = describe_model(*_model_flags({}))
    layout = _new_layout(loaded)
    if _DOCUMENTS.value:
        counts, num_chunks = _measure(loaded, layout, open_source(_DOCUMENTS.value))
        what = f"{counts.added:,} documents in {counts.parts:,} parts, {counts.tokens:,} tokens"
    elif _MEMORY_TOKENS.value:
        num_chunks = math.ceil(_MEMORY_TOKENS.value / layout.pooling_kernel_size)
        what = f"{_MEMORY_TOKENS.value:,} tokens"
    else:
        raise ConfigError("--estimate needs --documents, or --memory_tokens without any.")
    keys, content = (num_chunks * size for size in layout.bytes_per_chunk())
    return "\n".join(
        [
            f"{what}: {num_chunks:,} chunks of up to {layout.pooling_kernel_size} tokens",
            f"routing keys {format_bytes(keys)} ({layout.key_dtype}), content "
            f"{format_bytes(content)} ({layout.content_dtype}), together on disk "
            f"{format_bytes(keys + content)} besides the text",
            _placement(loaded.config, layout, num_chunks),
        ]
    )


def _placement(config: ModelConfig, layout: Layout, num_chunks: int) -> str:
    """Where the arrays would go on this machine, beside the parameters."""
    devices = jax.devices()
    budget = Budget.of(devices)
    params = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    params_bytes = params * np.dtype(config.dtype).itemsize
    budget = dataclasses.replace(budget, device_bytes=budget.device_bytes - params_bytes)
    beside = f"beside {format_bytes(params_bytes)} of parameters"
    try:
        plan = plan_tiers(layout, num_chunks, budget, num_shards=len(devices))
    except ConfigError as error:
        return f"in use here, {beside}: {error}"
    return f"in use here, {beside}: {plan.describe()}"


def _measure(loaded: LoadedModel, layout: Layout, source: DocumentSource) -> tuple[Counts, int]:
    """Splits all documents; also returns the number of chunks."""
    writer = PartWriter(loaded.builder, layout.max_document_tokens)
    counts, num_chunks, documents = Counts(), 0, iter(source)
    while some := list(itertools.islice(documents, _ESTIMATED_AT_ONCE)):
        found = [parts for parts in writer.split(some) if parts]
        lengths = np.array(
            [
                len(writer.write(part_id, part.tokens))
                for part_id, part in enumerate(itertools.chain(*found), start=counts.parts + 1)
            ],
            int,
        )
        num_chunks += int((-(-lengths // layout.pooling_kernel_size)).sum())
        counts += Counts(
            added=len(found),
            empty=len(some) - len(found),
            parts=len(lengths),
            tokens=int(lengths.sum()),
        )
    return counts, num_chunks


def _model_flags(facts: dict) -> tuple[str, str | None, str | None]:
    """Checkpoint, tokenizer and template: as the flags say, else as the bank does."""
    checkpoint = _CHECKPOINT.value or facts.get("checkpoint")
    if not checkpoint:
        raise ConfigError("--checkpoint is missing; name a training run or a Hugging Face folder.")
    return (
        checkpoint,
        _TOKENIZER.value or facts.get("tokenizer"),
        _TEMPLATE.value or facts.get("template"),
    )


def _load(facts: dict) -> tuple[LoadedModel, Mesh | None]:
    mesh = make_mesh(MeshConfig(data=-1)) if jax.device_count() > 1 else None
    return load_model(*_model_flags(facts), dtype=facts.get("dtype"), mesh=mesh), mesh


def _new_layout(loaded: LoadedModel) -> Layout:
    return new_layout(loaded, _MAX_DOCUMENT_TOKENS.value, _KEY_DTYPE.value, _CONTENT_DTYPE.value)


def _facts(bank: str) -> dict[str, str | None]:
    """What the bank remembers, if there is one."""
    if not Store.exists(bank):
        return {}
    with Store.open(bank) as store:
        _check_layout(store.layout)
        return store.facts


def _check_layout(layout: Layout) -> None:
    """Refuses flags that ask for another layout than the bank has."""
    for flag in (_KEY_DTYPE, _CONTENT_DTYPE, _MAX_DOCUMENT_TOKENS):
        has = getattr(layout, flag.name)
        if flag.value not in (None, has):
            raise ConfigError(
                f"--{flag.name}={flag.value} is not what the bank was made with ({has}); leave the "
                "flag out, or encode all documents into a new bank."
            )


def _open_bank(bank: str, loaded: LoadedModel) -> Store:
    """The bank, open for writing."""
    if Store.exists(bank):
        return Store.open(bank, write=True, fingerprint=fingerprint(loaded))
    return create_bank(bank, loaded, _new_layout(loaded))


def _summary(store: Store, counts: Counts, seconds: float) -> str:
    keys, content = (store.num_chunks * size for size in store.layout.bytes_per_chunk())
    removed = f", {counts.removed:,} removed" if _PRUNE.value else ""
    return (
        f"{counts.added:,} documents added, {counts.updated:,} updated, {counts.unchanged:,} "
        f"unchanged, {counts.empty:,} without text{removed}: {counts.tokens:,} tokens in "
        f"{seconds:.1f} s. "
        f"{store.path} holds {store.num_documents:,} documents in {store.num_parts:,} parts, "
        f"{store.num_tokens:,} tokens, routing keys {format_bytes(keys)}, content "
        f"{format_bytes(content)}."
    )


def run() -> None:
    """Runs the program."""
    cli.keep_compiled()
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
