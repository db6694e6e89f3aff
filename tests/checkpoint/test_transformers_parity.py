"""The same logits as `transformers` on tiny random models, loaded from it and exported to it."""

import jax
import numpy as np
import pytest

from msa_jax.checkpoint.huggingface import load_params, read_model_config, save_params
from msa_jax.config import MemoryConfig
from tests.checkpoint.logits import our_logits, random_tokens, their_logits

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")
transformers = pytest.importorskip(
    "transformers", reason="parity with transformers needs transformers"
)

MEMORY = MemoryConfig(router_layers=(1,), pooling_kernel_size=2, top_k_docs=2)
SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Large enough that every part of the model shows in the logits.
    "initializer_range": 0.3,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
}
MODELS = {
    "qwen3": {"head_dim": 8, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "llama_tied": {"tie_word_embeddings": True},
}
TOKENS = random_tokens(SIZES["vocab_size"])


def random_model(name):
    """A model whose biases and norm scales are random too; they are 0 and 1 when new."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name.split("_")[0], **SIZES, **MODELS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(tmp_path, name):
    model = random_model(name)
    model.save_pretrained(tmp_path / "theirs")
    config = read_model_config(tmp_path / "theirs", memory=MEMORY, dtype="float32", remat="nothing")
    params = load_params(tmp_path / "theirs", config, jax.random.key(0))
    expected = their_logits(model, TOKENS)
    assert_close(our_logits(config, params, TOKENS), expected)

    # Other values than the ones we were given, so that nothing can be a copy of the first folder.
    params = jax.tree.map(lambda leaf: leaf * np.float32(1.1), params)
    save_params(tmp_path / "ours", config, params, backbone_only=True)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(exported) is type(model)
    exported_logits = their_logits(exported, TOKENS)
    assert_close(exported_logits, our_logits(config, params, TOKENS))
    assert np.abs(exported_logits - expected).max() > 1e-2 * np.abs(expected).max()
