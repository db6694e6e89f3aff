"""Upstream's inference, repeated on the way that users' documents and questions take.

Documents are encoded, committed to a bank on disk, and read back; questions are routed over that
bank and continued by the generator, with a parameter array of its own for every layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from msa_jax.config import ModelConfig
from msa_jax.core.segments import TEMPLATE, TokenBlock
from msa_jax.data.records import Document
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.generate import Generator, Session
from msa_jax.memory.bank import Bank
from msa_jax.memory.store import EncodedDocument, Part, Store
from msa_jax.modules.transformer import Transformer
from msa_jax.modules.unstack import unstack_layers
from msa_jax.typing import PyTree


def compare_engine(
    config: ModelConfig, params: PyTree, golden: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, ours and upstream's of what is routed to and of all logits of new tokens."""
    with tempfile.TemporaryDirectory() as directory:
        _make_bank(Path(directory, "bank"), config, params, golden)
        with Store.open(Path(directory, "bank")) as store:
            bank = Bank(store)
            config, params = unstack_layers(config, params)
            generator = Generator(Transformer(config), params)
            steps = golden["decode_tokens"].shape[1]
            session = generator.start(_prompts(golden), bank.memory, room=steps)
            yield from _compare_session(config, bank, session, golden)


def _make_bank(path: Path, config: ModelConfig, params: PyTree, golden) -> None:
    numbers = range(1, int(golden["s1_doc_ids"].max()) + 1)
    texts = [golden["s1_input_ids"][golden["s1_doc_ids"] == number] for number in numbers]
    layout = bank_layout(config, max(map(len, texts)))
    encoder = Encoder(Transformer(config), params, layout)
    with Store.create(path, layout, {}, {}) as store:
        for doc_id, tokens in zip(store.reserve_ids(len(texts)), texts, strict=True):
            chunks = encoder.encode([tokens])
            part = Part(doc_id, 0, 1, len(tokens), len(chunks))
            store.commit([EncodedDocument(Document(str(doc_id), "."), (part,), chunks)])


def _prompts(golden) -> list[TokenBlock]:
    """The template head and a query, whose padding is left out."""
    names = ("input_ids", "doc_ids", "position_ids")
    head = golden["s1_doc_ids"] == TEMPLATE
    prompts = []
    for row, mask in enumerate(golden["s2_attention_mask"] == 1):
        pieces = ([golden[f"s1_{name}"][head], golden[f"s2_{name}"][row][mask]] for name in names)
        prompts.append(TokenBlock(*(np.concatenate(x).astype(np.int32) for x in pieces)))
    return prompts


def _compare_session(config: ModelConfig, bank: Bank, session: Session, golden):
    routing = session.routing
    for layer, scores, docs in zip(
        config.router_layers, routing.top_scores, routing.top_docs, strict=True
    ):
        yield f"top_scores_layer{layer}", scores, golden[f"top_scores_layer{layer}"]
        yield f"top_docs_layer{layer}", bank.ids(docs), golden[f"top_docs_layer{layer}"]
    yield "last_logits", session.logits, golden["s2_logits"][:, -1]
    for step, tokens in enumerate(golden["decode_tokens"].T):
        yield f"decode_tokens[{step}]", session.logits.argmax(axis=-1), tokens
        session.extend(tokens[:, None])
        yield f"decode_logits[{step}]", session.logits, golden["decode_logits"][:, step]
