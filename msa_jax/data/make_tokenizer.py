"""Trains the tokenizer that ships with the package, `docs-4k`, on installed documentation.

    python -m msa_jax.data.make_tokenizer --output=msa_jax/data/tokenizers/docs-4k.json

Byte-level BPE, so any text can be encoded. Every digit is a token of its own: numbers (document
ids above all) are then read and written digit by digit, and no number is unseen.
"""

import argparse
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from msa_jax.data import documentation

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_end|>",
    "<End-of-Retrieve>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE whose first ids are `SPECIAL_TOKENS`, in that order."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Gathers the text, trains, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--vocab-size", type=int, default=4096, help="special tokens included")
    arguments = parser.parse_args()
    docs = documentation.gather()
    texts = (text for doc in docs for text in (doc.summary, doc.body))
    train_tokenizer(texts, arguments.vocab_size).save(arguments.output, pretty=False)
    print(f"Trained on {sum(len(doc.body) for doc in docs) / 1e6:.1f} MB: {arguments.output}")


if __name__ == "__main__":
    main()
