"""A Llama model of a few thousand parameters in a GGUF file, and the wheel that holds it."""

import zipfile

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from tokenizers.pre_tokenizers import ByteLevel

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<filename>"]
# "1 2" is never used: each digit is a token of its own.
MERGES = ["t h", "th e", "Ġ the", "1 2", "u s", "e r", "us er"]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]

NUM_LAYERS, EMBED_DIM, HIDDEN_DIM, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 2, 64, 96, 4, 2, 16
CONFIG = {
    "model_type": "llama",
    "vocab_size": len(TOKENS),
    "hidden_size": EMBED_DIM,
    "intermediate_size": HIDDEN_DIM,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

_Q4, _Q8, _F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "F32"))
_LAYER = {
    "attn_norm": ("input_layernorm", (EMBED_DIM,), _F32),
    "attn_q": ("self_attn.q_proj", (NUM_HEADS * HEAD_DIM, EMBED_DIM), _Q4),
    "attn_k": ("self_attn.k_proj", (NUM_KV_HEADS * HEAD_DIM, EMBED_DIM), _Q8),
    "attn_v": ("self_attn.v_proj", (NUM_KV_HEADS * HEAD_DIM, EMBED_DIM), _Q4),
    "attn_output": ("self_attn.o_proj", (EMBED_DIM, NUM_HEADS * HEAD_DIM), _Q4),
    "ffn_norm": ("post_attention_layernorm", (EMBED_DIM,), _F32),
    "ffn_gate": ("mlp.gate_proj", (HIDDEN_DIM, EMBED_DIM), _Q4),
    "ffn_up": ("mlp.up_proj", (HIDDEN_DIM, EMBED_DIM), _Q8),
    "ffn_down": ("mlp.down_proj", (EMBED_DIM, HIDDEN_DIM), _F32),
}


def write_gguf(path, pre="smollm", **metadata):
    """Writes the model; returns its tensors as Hugging Face has them, rounded as the file is."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(NUM_LAYERS)
    writer.add_embedding_length(EMBED_DIM)
    writer.add_feed_forward_length(HIDDEN_DIM)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    for name, value in metadata.items():
        writer.add_string(name.replace("__", "."), value)
    tensors = dict(_write_tensors(writer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_wheel(path, gguf_file, name="tiny_model", version="1.0"):
    """Writes a package that holds a GGUF file, as pip would install it."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf_file, f"{name}/{gguf_file.name}")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path / f"{name}-{version}-py3-none-any.whl"


def _write_tensors(writer):
    rng = np.random.default_rng(0)

    def write(name, shape, kind, num_heads=None):
        values = rng.uniform(-0.5, 0.5, shape).astype(np.float32) + (len(shape) == 1)
        # Blocks lie within a row, so that it does not matter to them where the row is.
        writer.add_tensor(name, quantize(_pairs_together(values, num_heads), kind), raw_dtype=kind)
        return dequantize(quantize(values, kind), kind)

    embeddings = write("token_embd.weight", (len(TOKENS), EMBED_DIM), _Q8)
    yield "model.embed_tokens.weight", embeddings
    yield "model.norm.weight", write("output_norm.weight", (EMBED_DIM,), _F32)
    num_heads = {"attn_q": NUM_HEADS, "attn_k": NUM_KV_HEADS}
    for layer in range(NUM_LAYERS):
        for theirs, (ours, shape, kind) in _LAYER.items():
            values = write(f"blk.{layer}.{theirs}.weight", shape, kind, num_heads.get(theirs))
            yield f"model.layers.{layer}.{ours}.weight", values


def _pairs_together(rows, num_heads):
    """GGUF rotates neighbours: the halves of a head, row by row in turn."""
    if num_heads is None:
        return rows
    order = np.arange(len(rows)).reshape(num_heads, 2, -1).swapaxes(1, 2).ravel()
    return rows[order]
