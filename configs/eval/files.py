"""Recall against memory size on documents and questions of your own, beside BM25 and chance.

    python -m msa_jax.evaluate --config=configs/eval/files.py:DOCUMENTS,QUESTIONS \\
        --config.checkpoint=runs/mine

writes into runs/files/mine; another `--config.workdir` may have the model's name in it, too, as
{model}.

DOCUMENTS and QUESTIONS are JSON Lines files (docs/data.md); without them, those that the run of
`configs/tiny.py` held out. The documents must fill the largest memory. BM25 needs
`pip install '.[eval]'`; without it:

    --config.systems="('chance', 'msa')"
"""

from ml_collections import ConfigDict, config_dict

from msa_jax.data.records import read_documents
from msa_jax.evaluation.corpus import pool_of

HELD_OUT = "runs/tiny/corpus/heldout.documents.jsonl,runs/tiny/corpus/heldout.questions.jsonl"


def get_config(files: str = HELD_OUT) -> ConfigDict:
    """Returns the suite on two files, with a comma between their names."""
    documents, _, questions = files.partition(",")
    c = ConfigDict()
    c.workdir = "runs/files/{model}"
    c.checkpoint = config_dict.placeholder(str)
    c.tokenizer = config_dict.placeholder(str)
    c.template = config_dict.placeholder(str)
    c.corpus = {"documents": (documents,), "max_document_tokens": 256}
    # Any document may fill up any memory.
    pools = {pool_of(document, documents) for document in read_documents(documents)}
    c.sets = {
        "all": {"questions": questions, "pools": tuple(sorted(pools)), "count": 256, "answered": 0}
    }
    c.memory_tokens = (16_384, 65_536, 262_144, 1_048_576)
    # Questions that have an answer can be answered, too, at some of these sizes.
    c.answer_memory_tokens = ()
    c.systems = ("chance", "bm25", "msa")
    c.encode_batch_tokens = 131_072
    c.batch_size = 64
    c.seed = 0
    return c
