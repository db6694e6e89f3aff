"""Where answers come from, against attention recomputed from parameters by plain formulas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msa_jax.core import rope
from msa_jax.data.examples import Source, retrievals, token_block
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.attribution import attribute
from msa_jax.engine.generate import Generator
from msa_jax.engine.interleave import InterleaveConfig, Library, interleave
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.modules.state import LayerMemory, Memory
from msa_jax.modules.transformer import Transformer
from tests.modules.tiny import POOLING, compiled, model_config, random_params, rows_of

TOKENIZER = Tokenizer.load("docs-4k")
HEAD_LEN = len(TOKENIZER.encode_template(TEMPLATES["plain"].head))
IDS = np.array([41, 7, 12, 120, 9])
TEXTS = [" amber river", " stone", " cloud over it and under", " harbor", " meadow"]
QUESTION, ANSWER = "Which river is it?", "amber stone"
NAMED = ((12, 41), (7,))
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def config():
    memory = {"head_len": HEAD_LEN, "top_k_docs": 3}
    return model_config(vocab_size=TOKENIZER.vocab_size, memory=memory)


@pytest.fixture(scope="module")
def builder(config):
    return PromptBuilder(TEMPLATES["plain"], TOKENIZER, config.memory)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def memory(config, builder, params):
    documents = [
        builder.document(i, text) for i, text in zip(IDS.tolist(), _texts(IDS), strict=True)
    ]
    rows = rows_of(documents, [[number] for number in range(len(IDS))], 24)
    return compiled(config, params)(rows, num_documents=len(IDS), method="encode")


@pytest.fixture(scope="module")
def generator(config, params):
    return Generator(Transformer(config), params)


def _texts(ids):
    return [TOKENIZER.encode(TEXTS[IDS.tolist().index(i)]) for i in ids]


def library_of(memory):
    return Library(memory, lambda slots: IDS[slots], _texts)


def whole_conversation(builder, answer_tokens):
    """Prompt, originals and closing, and the number of these tokens; then the answer's."""
    texts = dict(zip(IDS.tolist(), _texts(IDS), strict=True))
    hops = [[Source(i, texts[i]) for i in hop] for hop in NAMED]
    pieces = [*retrievals(builder, QUESTION, hops, 4096), *builder.closing(QUESTION)]
    start = sum(len(piece.tokens) for piece in pieces)
    answer = builder.answer(ANSWER)
    return token_block(builder, [*pieces, answer._replace(tokens=answer_tokens)]), start


def reference(config, params, memory, block):
    """Attention `[L, T, chunks + T]` of every token in router layers, layer by layer in float32.

    Chunks are those of the whole memory; what a layer has not chosen gets nothing.
    """
    params = jax.tree.map(np.asarray, params)
    x = params["embedder"]["embedding"][block.tokens]
    length = len(block.tokens)
    causal = np.tril(np.ones((length, length), bool))
    routed, found = 0, []
    for name, start, stop in config.layer_runs:
        for number in range(stop - start):
            own = jax.tree.map(lambda leaf, n=number: leaf[n], params[name])
            attention, normed = own["attention"], _norm(x, own["input_norm"]["scale"])
            queries, keys, values = (
                np.einsum("td,dnh->tnh", normed, attention[f"{p}_proj"]["kernel"]) for p in "qkv"
            )
            queries = _norm(queries, attention["q_norm"]["scale"])
            keys = _norm(keys, attention["k_norm"]["scale"])
            queries, keys = (
                np.asarray(rope.apply_rope(jnp.asarray(y), block.segment_pos, config.rope_theta))
                for y in (queries, keys)
            )
            mask = causal
            if name.startswith("routed"):
                content = np.asarray(memory.layers.content.values[routed, 0])
                sees = block.segment_pos >= config.memory.head_len
                chosen = _chosen_chunks(config, attention, normed, block, memory, routed)
                keys = np.concatenate([content[:, 0], keys])
                values = np.concatenate([content[:, 1], values])
                mask = np.concatenate([sees[:, None] & chosen, causal], axis=1)
                routed += 1
            group = config.num_heads // config.num_kv_heads
            logits = np.einsum("tnh,anh->nta", queries, keys.repeat(group, axis=1))
            logits = np.where(mask, logits / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            if name.startswith("routed"):
                found.append(weights.mean(axis=0))
            heads = np.einsum("nta,anh->tnh", weights, values.repeat(group, axis=1))
            x = x + np.einsum("tnh,nhd->td", heads, attention["o_proj"]["kernel"])
            x = x + _mlp(_norm(x, own["post_attention_norm"]["scale"]), own["mlp"])
    return np.stack(found)


def _chosen_chunks(config, attention, normed, block, memory, routed):
    """Which chunks of the memory belong to the documents that score best."""
    router_keys = np.asarray(memory.layers.router_keys.values[routed, 0])
    router_keys = router_keys.reshape(len(router_keys), config.num_kv_heads, -1)
    queries = np.einsum("td,dnh->tnh", normed, attention["router"]["q_proj"]["kernel"])
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    group = config.num_heads // config.num_kv_heads
    per_head = np.einsum("tnh,cnh->tnc", queries, router_keys.repeat(group, axis=1))
    scores = per_head.mean(axis=1)[block.doc_ids == 0].max(axis=0)
    owners = np.asarray(memory.index.chunk_doc[0])
    best = [scores[owners == document].max() for document in range(len(IDS))]
    return np.isin(owners, np.argsort(best)[-config.memory.top_k_docs :])


def _norm(x, scale):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * scale


def _mlp(x, params):
    gate, up = (x @ params[f"{name}_proj"]["kernel"] for name in ("gate", "up"))
    return gate / (1 + np.exp(-gate)) * up @ params["down_proj"]["kernel"]


@pytest.fixture(scope="module")
def attribution(generator, builder, memory):
    return attribute(generator, builder, library_of(memory), QUESTION, ANSWER, NAMED)


def test_attention_is_that_of_plain_formulas(attribution, config, builder, params, memory):
    tokens = builder.answer(ANSWER).tokens
    block, start = whole_conversation(builder, tokens)
    weights = reference(config, params, memory, block)[:, start - 1 : start - 1 + len(tokens)]
    owners = np.asarray(memory.index.chunk_doc[0])
    first = np.asarray(memory.index.first_chunk[0])
    assert {chunk.document for chunk in attribution.attended} <= set(IDS.tolist())
    assert len(attribution.attended) > config.memory.top_k_docs, "some documents have two chunks"
    expected = np.zeros_like(weights[..., : len(owners)])
    for at, chunk in enumerate(attribution.attended):
        column = first[IDS.tolist().index(chunk.document)] + chunk.index
        expected[..., column] = attribution.on_chunks[..., at]
    np.testing.assert_allclose(expected, weights[..., : len(owners)], atol=TOLERANCE)
    local = weights[..., len(owners) :]
    assert attribution.read == (12, 41, 7)
    for at, document in enumerate(attribution.read):
        written = builder.originals([document], _texts([document])).tokens
        written = written[: len(written) - len(builder.originals([], []).tokens)]
        (place,) = _places(block.tokens, written)
        own = local[..., place : place + len(written)].sum(axis=-1)
        np.testing.assert_allclose(attribution.on_originals[..., at], own, atol=TOLERANCE)
    rest = local.sum(axis=-1) - attribution.on_originals.sum(axis=-1)
    np.testing.assert_allclose(attribution.on_rest, rest, atol=TOLERANCE)


def _places(tokens, wanted):
    """Where a sequence of tokens occurs."""
    return [
        start
        for start in range(len(tokens) - len(wanted) + 1)
        if (tokens[start : start + len(wanted)] == wanted).all()
    ]


def test_shares_of_a_token_sum_to_one(attribution):
    assert "".join(attribution.tokens) == " amber stone<|im_end|>"
    assert attribution.layers == (1, 2)
    total = attribution.on_chunks.sum(-1) + attribution.on_originals.sum(-1) + attribution.on_rest
    assert total.shape == (2, len(attribution.tokens))
    np.testing.assert_allclose(total, 1, atol=1e-5)
    for token in (0, len(attribution.tokens) - 1, None):
        rest = attribution.on_rest.mean(axis=0)
        rest = rest.mean() if token is None else rest[token]
        documents = attribution.documents(token)
        assert sum(one.share for one in documents) + rest == pytest.approx(1, abs=1e-5)
        shares = [one.share for one in documents]
        assert shares == sorted(shares, reverse=True)
        of_chunks = sum(one.share for one in attribution.chunks(token))
        assert of_chunks == pytest.approx(sum(one.memory for one in documents), abs=1e-5)


def test_chunks_are_texts_of_documents(attribution, builder):
    for chunk in attribution.attended:
        encoded = builder.document(chunk.document, _texts([chunk.document])[0])
        own = encoded[chunk.index * POOLING : (chunk.index + 1) * POOLING]
        assert chunk.text == TOKENIZER.decode(own) and chunk.text
    assert len({chunk[:2] for chunk in attribution.attended}) == len(attribution.attended)


@pytest.mark.parametrize("needle", [1, 2, 4])
def test_the_one_document_with_keys_dominates_memory(generator, builder, memory, needle):
    """Keys of the others are zero, so that only its chunks can be looked for; all can be chosen."""

    def changed(scale_of_others):
        mask = jnp.isin(jnp.arange(len(IDS)), jnp.array([0, 3, needle]))[None, None]
        content, own = memory.layers.content, memory.index.chunk_doc[0] == needle
        scale = jnp.where(own[:, None, None], 8.0, scale_of_others)
        content = dataclasses.replace(content, values=content.values.at[:, :, :, 0].multiply(scale))
        index = dataclasses.replace(memory.index, doc_mask=mask)
        return Memory(LayerMemory(memory.layers.router_keys, content), index)

    def shares(scale_of_others):
        library = library_of(changed(scale_of_others))
        found = attribute(generator, builder, library, QUESTION, ANSWER, ended=False)
        assert "".join(found.tokens) == " amber stone"
        return {one.document: one.memory for one in found.documents()}

    alone, other_needle = shares(0.0), shares(8.0)
    document = int(IDS[needle])
    assert alone.keys() == other_needle.keys() == {41, 120, document}
    assert max(alone, key=alone.get) == document
    assert alone[document] > other_needle[document]


@pytest.mark.slow
def test_an_answer_of_the_engine(generator, builder, memory):
    library = library_of(memory)
    config = InterleaveConfig(max_rounds=2, max_documents_per_round=2, max_original_tokens=4)
    # Drawn several times, since some of the conversations read nothing, and some answers end
    # within a character.
    sampling = SamplingConfig(max_tokens=4, temperature=1.0, seed=1)
    conversations = interleave(generator, builder, library, [QUESTION] * 8, config, sampling)
    one = max(conversations, key=lambda x: ("\ufffd" not in x.answer, len(x.documents)))
    assert one.answer and len(one.documents) > 1 and one.finished == "length"
    named = [x.named for x in one.rounds]
    found = attribute(generator, builder, library, QUESTION, one.answer, named, False, 4)
    assert found.read == one.documents and "".join(found.tokens) == f" {one.answer}"
    total = found.on_chunks.sum(-1) + found.on_originals.sum(-1) + found.on_rest
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (found.on_originals > 0).all()


def test_a_filtered_document_gets_nothing(generator, builder, memory):
    mask = jnp.array([[[True, False, False, False, False]]])
    alone = Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=mask))
    found = attribute(generator, builder, library_of(alone), QUESTION, ANSWER)
    assert {chunk.document for chunk in found.attended} == {41} and not found.read
    np.testing.assert_allclose(found.on_chunks.sum(-1) + found.on_rest, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("of", "answer", "message"),
    [(None, ANSWER, "there is no memory"), ("memory", "", "is empty; nothing can be said")],
)
def test_what_cannot_be_attributed(generator, builder, memory, of, answer, message):
    library = library_of(memory if of else None)
    with pytest.raises(ValueError, match=message):
        attribute(generator, builder, library, "Who?", answer, ended=False)
