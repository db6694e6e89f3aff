"""A small model learns to retrieve, on two CPU cores, from text that is already on your machine.

    python -m msa_jax.train --config=configs/tiny.py

gathers the documentation of the installed Python packages, hides needles in it ("One of the
special magic numbers for quiet-harbor is: 5254481."), trains a model of 2.2M parameters to find
them and to match the first line of a docstring with the rest, and measures on held-out needles
and docstrings how that holds while memory grows from 16K to 1M tokens. See README.md for what
to expect.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from msa_jax.data.demo import DemoConfig
from msa_jax.training.config import with_defaults


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/tiny"
    c.seed = 0
    c.log_every = 5

    c.model = ConfigDict(
        dict(
            vocab_size=4096,
            num_layers=3,
            embed_dim=160,
            hidden_dim=480,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            tie_embeddings=False,
            dtype="float32",
            remat="nothing",
        )
    )
    c.model.memory = ConfigDict(
        dict(
            router_layers=(1, 2),
            # Chunks of 16: a key of a needle is 5 tokens, and there is little time to learn to
            # hear it among 64.
            pooling_kernel_size=16,
            # From nothing, a router that starts as word matching learns ten times sooner.
            router_init="shared",
        )
    )

    c.data = ConfigDict(
        dict(
            # None: the documentation on this machine. Name your own JSON Lines files instead.
            documents=config_dict.placeholder(str),
            questions=config_dict.placeholder(str),
            tokenizer="docs-4k",
            template="plain",
            row_tokens=128,
            max_document_tokens=128,
            id_space=100_000,
            negatives_per_question=3,
        )
    )
    c.demo = ConfigDict(dataclasses.asdict(DemoConfig(train_needles=5_000, train_docstrings=2_500)))

    c.curriculum = ("retrieval",)
    c.stages = ConfigDict()
    c.stages.retrieval = ConfigDict(
        dict(
            steps=180,
            # Faster than this, the router learns what needles have in common and stops there.
            learning_rate=5e-4,
            router_learning_rate=2e-3,
            warmup_steps=20,
            lm_weight=0.1,
            aux_weight=1.0,
            memory_tokens=8192,
            groups=1,
            queries_per_group=32,
            active_tokens=64,
        )
    )
    c.checkpoint = ConfigDict(dict(every=90, keep=1))

    c.evaluation = ConfigDict(
        dict(
            documents=config_dict.placeholder(str),
            questions=config_dict.placeholder(str),
            kinds=("needle", "docstring"),
            memory_tokens=(16_384, 65_536, 262_144, 1_048_576),
        )
    )
    return with_defaults(c)
