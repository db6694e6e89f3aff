"""RULER's eight needle-in-a-haystack subtasks, from 16K tokens on.

    python -m msa_jax.evaluate --config=configs/eval/ruler.py \\
        --config.checkpoint=runs/100m --config.essays=FOLDER --config.workdir=runs/ruler

Essays are the text files of a folder, or a JSON Lines file of documents; where there are fewer than
a memory holds, they are repeated. Subtasks and sizes can be measured one by one, in one workdir:

    --config.subtasks="('niah_single_1',)" --config.memory_tokens="(16_384, 100_000_000)"

needs no essays. The seed, the text and the tokenizer make the data, on every machine the same.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns all subtasks at four sizes."""
    c = ConfigDict()
    c.benchmark = "ruler"
    c.workdir = "runs/ruler/{model}"
    c.checkpoint = config_dict.placeholder(str)
    c.essays = config_dict.placeholder(str)
    c.subtasks = (
        *("niah_single_1", "niah_single_2", "niah_single_3"),
        *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
        *("niah_multivalue", "niah_multiquery"),
    )
    c.memory_tokens = (16_384, 131_072, 1_048_576, 10_000_000)
    c.num_samples = 100
    c.max_document_tokens = 256
    c.tokenizer = config_dict.placeholder(str)
    c.template = config_dict.placeholder(str)
    c.dtype = config_dict.placeholder(str)
    # In bfloat16, a memory takes twice the room.
    c.key_dtype = "int8"
    c.content_dtype = "int8"
    c.content_tier = config_dict.placeholder(str)
    c.encode_batch_tokens = 131_072
    c.batch_size = 64
    c.interleave = {
        "max_rounds": 4,
        "max_documents_per_round": 4,
        "max_documents": 8,
        "max_original_tokens": 2048,
        "constrain": "routed",
        "router_temperature": config_dict.placeholder(float),
        "margin": config_dict.placeholder(float),
    }
    c.seed = 42
    return c
