"""The second look: pairs are scored the same alone and in any company, and as the model says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from msa_jax.checkpoint.look import FILE, load_look, save_look
from msa_jax.checkpoint.tensors import CheckpointError
from msa_jax.config import MemoryConfig, ModelConfig
from msa_jax.core.segments import PADDING, QUERY, TokenBlock
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.look import Look
from msa_jax.modules.init import init_params
from msa_jax.modules.look import LookParams, look_logits
from msa_jax.modules.lora import init_lora, is_linear, merge_lora
from msa_jax.modules.transformer import Transformer, init_cache

TOKENIZER = Tokenizer.load("docs-4k")
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size,
    num_layers=3,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    dtype="float32",
    memory=MemoryConfig(router_layers=(1, 2), pooling_kernel_size=4),
)
MODEL = Transformer(CONFIG)


@pytest.fixture(scope="module")
def params():
    """Random weights everywhere: a new model's output projections are zero."""
    leaves, structure = jax.tree.flatten(init_params(CONFIG, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        structure,
        [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)],
    )


@pytest.fixture(scope="module")
def look(params):
    paths = [path for path in traverse_util.flatten_dict(params, sep="/") if is_linear(path)]
    lora = init_lora(params, paths, 4, 1.0, jax.random.key(2))
    factors = jax.tree.map(lambda x: x + 0.05, lora.factors)
    weight = jax.random.normal(jax.random.key(3), (CONFIG.embed_dim,))
    return LookParams(dataclasses.replace(lora, factors=factors), weight, jnp.float32(0.5))


@pytest.fixture(scope="module")
def builder():
    return PromptBuilder(TEMPLATES["plain"], TOKENIZER, CONFIG.memory)


@pytest.fixture(scope="module")
def pairs():
    texts = (
        " Ada repaired the lighthouse in 1901.",
        " Bread.",
        " The tower has seven floors. " * 9,
    )
    questions = ("Who repaired the lighthouse?", "How many floors?")
    return [(TOKENIZER.encode(text), question) for text in texts for question in questions]


def test_a_pair_scores_the_same_in_any_company(params, look, builder, pairs):
    eyes = Look(MODEL, params, look, builder)
    together = eyes.logits(pairs)
    alone = [eyes.logits([pair])[0] for pair in pairs]
    assert len(set(np.round(together, 3))) == len(pairs)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert eyes.logits([]).shape == (0,)


def test_a_score_is_that_of_the_pair_without_padding(params, look, builder, pairs):
    text, question = pairs[0]
    tokens = builder.pair(text, question)[None, None]
    block = TokenBlock(tokens, np.full_like(tokens, QUERY), np.arange(tokens.size)[None, None])
    merged = merge_lora(params, look.lora)
    (expected,) = look_logits(MODEL, merged, look.weight, look.bias, block)[0]
    np.testing.assert_allclose(
        Look(MODEL, params, look, builder).logits([pairs[0]])[0], expected, atol=1e-5
    )


def test_reading_is_a_prefill_without_a_memory(params, pairs):
    tokens = pairs[0][0][None, None]
    block = TokenBlock(tokens, np.full_like(tokens, QUERY), np.arange(tokens.size)[None, None])
    variables = {"params": params}
    hidden = MODEL.apply(variables, block, method="read")
    cache = init_cache(CONFIG, 1, 1, tokens.size)
    expected, _, _ = MODEL.apply(variables, block, cache, method="prefill")
    np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_what_a_document_becomes_does_not_depend_on_the_question(params, builder, pairs):
    """So its keys and values may be kept: gradients of its states by the question are zero."""
    text, question = pairs[0]
    tokens = builder.pair(text, question)
    length, first = len(tokens), len(builder.head) + len(text)
    roles = np.full((1, 1, length), QUERY)
    roles[..., -1] = PADDING
    block = TokenBlock(tokens[None, None], roles, np.arange(length)[None, None])

    def states(embedding):
        changed = params | {"embedder": {"embedding": embedding}}
        return MODEL.apply({"params": changed}, block, method="read")[0, 0, :first].sum()

    embedding = params["embedder"]["embedding"]
    only_in_question = np.setdiff1d(tokens[first:], tokens[:first])
    gradient = np.asarray(jax.grad(states)(embedding))
    assert len(only_in_question)
    assert not gradient[only_in_question].any()
    assert gradient[tokens[0]].any()


def test_long_questions_are_cut(builder, pairs):
    long = builder.pair(pairs[0][0], "why " * 1000)
    assert len(long) < 300
    np.testing.assert_array_equal(long[-3:], builder.pair(pairs[0][0], "why?")[-3:])


def test_a_look_comes_back_from_disk(tmp_path, look):
    assert load_look(tmp_path, CONFIG) is None
    save_look(tmp_path, look)
    loaded = load_look(tmp_path, CONFIG)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2), loaded, look)
    np.testing.assert_array_equal(loaded.weight, look.weight)


def test_a_look_of_another_model_is_refused(tmp_path, look):
    save_look(tmp_path, look)
    with pytest.raises(CheckpointError, match=r"look\.safetensors is not of this model: .*mlp"):
        load_look(tmp_path, dataclasses.replace(CONFIG, hidden_dim=64))


@pytest.mark.parametrize("spoil", ["nan", "missing", "cut"])
def test_a_spoilt_look_is_refused(tmp_path, look, spoil):
    save_look(tmp_path, look)
    path = tmp_path / FILE
    tensors = load_file(path)
    if spoil == "nan":
        save_file(tensors | {"head.weight": tensors["head.weight"] * np.nan}, path)
    elif spoil == "missing":
        save_file({name: x for name, x in tensors.items() if name != "scale"}, path)
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"head\.weight|scale|cannot be read"):
        load_look(tmp_path, CONFIG)
