"""Readers of the files that other projects publish: each yields documents and questions.

The documents of a question come before it. The same document may come again. A question that the
documents do not answer has no positive.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msa_jax.data.formats.longmemeval import longmemeval
from msa_jax.data.formats.msmarco import msmarco
from msa_jax.data.formats.multihop import hotpotqa, musique, two_wiki
from msa_jax.data.formats.ranking import beir
from msa_jax.data.formats.reading import Record
from msa_jax.data.formats.recognise import check_format
from msa_jax.data.formats.squad import squad
from msa_jax.data.formats.text import text

FORMATS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    "squad": squad,
    "hotpotqa": hotpotqa,
    "2wiki": two_wiki,
    "musique": musique,
    "beir": beir,
    "msmarco": msmarco,
    "longmemeval": longmemeval,
    "text": text,
}

__all__ = ["FORMATS", "Record", "check_format"]
