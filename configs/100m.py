"""A 135M-parameter model with the geometry of SmolLM2-135M, from a pretrained backbone.

    python -m msa_jax.train --config=configs/100m.py --config.workdir=runs/100m \\
        --config.init_from=checkpoints/SmolLM2-135M \\
        --config.data.tokenizer=checkpoints/SmolLM2-135M \\
        --config.data.documents=documents.jsonl --config.data.questions=questions.jsonl

`checkpoints/SmolLM2-135M` is a Hugging Face folder (config.json, tokenizer.json and safetensors)
that you downloaded. Without the first of these flags the model starts from random parameters and
without the second it uses the packaged tokenizer, which together test the program, not the recipe.

What to expect: not yet run. Watch recall@16: an untrained router finds nothing, and how far
training lifts it depends on the number of steps and on how confusable the documents are.

Sizes are for one accelerator of 80 GB; `--config.mesh.data=-1` spreads the groups over more.
"""

from ml_collections import ConfigDict

from msa_jax.training.config import with_defaults


def get_config() -> ConfigDict:
    """Returns the run."""
    c = ConfigDict()
    c.workdir = "runs/100m"
    c.model = {
        "vocab_size": 49_152,
        "num_layers": 30,
        "embed_dim": 576,
        "hidden_dim": 1536,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "rope_theta": 100_000.0,
        "norm_eps": 1e-5,
        "memory": {"pooling_kernel_size": 64, "top_k_docs": 16},
    }
    c.data = {
        "documents": "documents.jsonl",
        "questions": "questions.jsonl",
        "id_space": 100_000,
        "answer_fraction": 0.5,
    }
    # Learning rates are far above those of a 4B model: at this size a router learns only if the
    # backbone moves with it. Memories grow step by step: routers do not survive a jump from few
    # documents to many.
    c.curriculum = ("warmup", "pretrain", "sft_8k", "sft_64k")
    c.stages = {
        "warmup": {
            "steps": 1_000,
            "memory_tokens": 16_384,
            "groups": 8,
            "queries_per_group": 16,
            "active_tokens": 512,
            "learning_rate": 2e-4,
            "router_learning_rate": 5e-4,
            "warmup_steps": 100,
            "schedule": "constant",
            "lm_weight": 0.1,
            "aux_weight": 1.0,
        },
        "pretrain": {
            "steps": 10_000,
            "memory_tokens": 32_768,
            "groups": 4,
            "queries_per_group": 32,
            "active_tokens": 512,
            "learning_rate": 1e-4,
            "router_learning_rate": 2e-4,
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
            "learning_rate": 5e-5,
            "warmup_steps": 100,
            "answer_weight": 1.0,
        },
        "sft_64k": {
            "steps": 2_000,
            "memory_tokens": 65_536,
            "groups": 2,
            "queries_per_group": 32,
            "active_tokens": 1_024,
            "learning_rate": 2e-5,
            "warmup_steps": 100,
            "answer_weight": 1.0,
        },
    }
    return with_defaults(c)
