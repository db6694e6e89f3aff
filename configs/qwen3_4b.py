"""The geometry and the curriculum of MSA-4B, on the backbone Qwen3-4B-Instruct-2507.

    python -m msa_jax.train --config=configs/qwen3_4b.py --config.workdir=runs/qwen3_4b \\
        --config.init_from=checkpoints/Qwen3-4B-Instruct-2507 \\
        --config.data.tokenizer=checkpoints/Qwen3-4B-Instruct-2507 \\
        --config.data.documents=documents.jsonl --config.data.questions=questions.jsonl

`checkpoints/Qwen3-4B-Instruct-2507` is a Hugging Face folder (config.json, tokenizer.json and
safetensors) that you downloaded. Without the first of these flags the model starts from random
parameters, and without the second it uses the packaged tokenizer.

What to expect: not yet run. Stages, loss weights and learning rates are those of the paper; its
pretraining saw 159 billion tokens, so the steps below are a beginning.

Sizes are for eight accelerators of 80 GB, over which parameters and groups are spread
(`mesh.fsdp`); parameters and optimiser alone take 16 bytes for each of 4.3 billion parameters.
"""

from ml_collections import ConfigDict

from msa_jax.training.config import with_defaults


def get_config() -> ConfigDict:
    """Returns the run."""
    c = ConfigDict()
    c.workdir = "runs/qwen3_4b"
    c.mesh = {"fsdp": 8}
    c.model = {
        "vocab_size": 151_936,
        "num_layers": 36,
        "embed_dim": 2560,
        "hidden_dim": 9728,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "rope_theta": 5_000_000.0,
        "norm_eps": 1e-6,
        "qk_norm": True,
        "memory": {"pooling_kernel_size": 64, "top_k_docs": 16},
    }
    c.data = {
        "documents": "documents.jsonl",
        "questions": "questions.jsonl",
        "template": "msa_4b",
        "id_space": 100_000,
        "answer_fraction": 0.5,
    }
    c.curriculum = ("warmup", "pretrain", "sft_8k", "sft_64k")
    c.stages = {
        "warmup": {
            "steps": 1_000,
            "memory_tokens": 16_384,
            "groups": 8,
            "queries_per_group": 16,
            "active_tokens": 512,
            "learning_rate": 1e-4,
            "warmup_steps": 100,
            "schedule": "constant",
            "lm_weight": 0.1,
            "aux_weight": 1.0,
        },
        "pretrain": {
            "steps": 20_000,
            "memory_tokens": 65_536,
            "groups": 8,
            "queries_per_group": 16,
            "active_tokens": 512,
            "learning_rate": 6e-6,
            "warmup_steps": 100,
            "lm_weight": 1.0,
            "aux_weight": 0.1,
        },
        "sft_8k": {
            "steps": 2_000,
            "memory_tokens": 8_192,
            "groups": 16,
            "queries_per_group": 8,
            "active_tokens": 1_024,
            "learning_rate": 6e-6,
            "warmup_steps": 100,
            "answer_weight": 1.0,
        },
        "sft_64k": {
            "steps": 2_000,
            "memory_tokens": 65_536,
            "groups": 8,
            "queries_per_group": 8,
            "active_tokens": 1_024,
            "learning_rate": 6e-6,
            "warmup_steps": 100,
            "answer_weight": 1.0,
        },
    }
    return with_defaults(c)
