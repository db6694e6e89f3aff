"""Looks after a bank: what is in it, whether it is sound, and what is to go.

    python -m msa_jax.bank --bank=bank                      what it holds
    python -m msa_jax.bank --bank=bank --verify             reads every byte; exit code 1 if damaged
    python -m msa_jax.bank --bank=bank --delete=key1,key2   removes documents
    python -m msa_jax.bank --bank=bank --delete_from=FILE   likewise; FILE is a JSON list of keys
    python -m msa_jax.bank --bank=bank --compact            gives back what removed documents took

Documents are added by `python -m msa_jax.encode`. No model is loaded here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from msa_jax import cli
from msa_jax.config import ConfigError
from msa_jax.fields import check_value
from msa_jax.memory.store import Store
from msa_jax.memory.tiers import format_bytes
from msa_jax.terminal import show

FLAGS = flags.FlagValues()
_BANK = flags.DEFINE_string("bank", None, "Directory of the bank.", flag_values=FLAGS)
_DELETE = flags.DEFINE_list("delete", [], "Keys of documents to remove.", flag_values=FLAGS)
_DELETE_FROM = flags.DEFINE_string(
    "delete_from",
    None,
    "File with a JSON list of keys of documents to remove, whatever characters they have; - for "
    "standard input.",
    flag_values=FLAGS,
)
_COMPACT = flags.DEFINE_bool("compact", False, "Reclaim space.", flag_values=FLAGS)
_VERIFY = flags.DEFINE_bool("verify", False, "Read every byte.", flag_values=FLAGS)


def main(arguments: Sequence[str]) -> None:
    cli.refuse_arguments(arguments)
    bank = cli.given(_BANK, "the directory of the bank")
    deletes = [*_DELETE.value, *(_keys(_DELETE_FROM.value) if _DELETE_FROM.value else ())]
    with Store.open(bank, write=bool(deletes or _COMPACT.value)) as store:
        if deletes:
            store.commit(deletes=deletes)
        if _COMPACT.value:
            show(f"{format_bytes(store.compact(min_garbage=0.0))} reclaimed.")
        show(describe(store))
        if _VERIFY.value:
            problems = verify(store)
            show("\n".join(problems) or "Every byte is as it was written.")
            sys.exit(1 if problems else 0)


def _keys(file: str) -> list[str]:
    """The keys that a file lists."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        keys = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--delete_from={file} cannot be read as JSON: {error}.") from error
    check_value(f"--delete_from={file}", keys, tuple[str, ...])
    return keys


def describe(store: Store) -> str:
    """What a bank holds, and which model encoded it."""
    layout, stats = store.layout, store.stats
    lines = [
        f"{store.num_documents:,} documents in {store.num_parts:,} parts, {store.num_tokens:,} "
        f"tokens, {store.num_chunks:,} chunks; version {store.version}",
        f"routing keys {layout.key_dtype}, content {layout.content_dtype}, parts of up to "
        f"{layout.max_document_tokens} tokens",
        f"arrays {format_bytes(stats['bytes_live'])} and {format_bytes(stats['bytes_garbage'])} of "
        f"removed documents, catalogue {format_bytes(stats['bytes_catalogue'])}",
    ]
    lines += [f"{name}: {value}" for name, value in store.facts.items() if value is not None]
    return "\n".join(lines)


def verify(store: Store) -> list[str]:
    """What is wrong with a bank, in words, with a progress bar."""
    with tqdm(desc="verify", unit="block") as bar:
        return store.verify(cli.progress_of(bar))


def run() -> None:
    """Runs the program."""
    cli.run(main, FLAGS)


if __name__ == "__main__":
    run()
