"""An inverted index of words (tantivy): ranks texts by BM25, and can be changed.

It knows texts by their ids and nothing of banks; `bank_words.py` keeps it in step with one. What it
was made from is said by a stamp, which changes in the same commit as its texts.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from msa_jax.memory.parts import StoreError
from msa_jax.memory.words.terms import words
from msa_jax.typing import Float, Int

try:
    import tantivy
except ImportError:
    tantivy = None

# Of BM25; the library has no others.
K1, B = 1.2, 0.75
# In the name of the field: another one, when `words` changes, makes indices anew.
_TERMS = "terms1"
# The document that holds the stamp; texts have ids from 1 on.
_STAMP_ID = 0
# Words in so many texts, and in more than this share of them, are left out of a question that has
# others: they take most of the time and change little (docs/performance.md).
_COMMON_TEXTS, _COMMON_SHARE = 10_000, 0.2
# The rarest words of a question that count, since a question may be a page.
_MOST_WORDS = 64
_WRITER_BYTES = 128 * 2**20
_SEGMENT_FILE = re.compile(r"[0-9a-f]{32}\.")

# Ids of texts, the best first, and their scores.
Ranking = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]


class UnusableIndex(Exception):
    """An index that is missing, damaged, of another format, or cannot be written: make it anew."""


def is_installed() -> bool:
    """Whether the library is there."""
    return tantivy is not None


class WordsIndex:
    """An open index; searches may run beside one change.

    Attributes:
        stamp: what it was made from.
        is_in_memory: whether it is lost when the process ends.
    """

    def __init__(self, folder: pathlib.Path | None, new: bool):
        if tantivy is None:
            raise StoreError("search by words needs tantivy: pip install tantivy.")
        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("id", indexed=True, fast=True)
        builder.add_text_field(_TERMS, tokenizer_name="whitespace", index_option="freq")
        builder.add_text_field("stamp", stored=True, tokenizer_name="raw", index_option="basic")
        self._schema = builder.build()
        self.is_in_memory = folder is None
        with _library_errors():
            if folder is None:
                self._index = tantivy.Index(self._schema)
            else:
                if new:
                    folder.mkdir()
                elif not index_exists(folder):
                    raise UnusableIndex("there is none")
                self._index = tantivy.Index(self._schema, str(folder))
            # Without a thread that looks for changes.
            self._index.config_reader("manual")

    @classmethod
    def open(cls, folder: pathlib.Path) -> WordsIndex:
        """Opens an index, whose bytes are checked.

        Raises:
            UnusableIndex: if there is none, or it is damaged.
        """
        for problem in damage(folder):
            raise UnusableIndex(problem)
        index = cls(folder, new=False)
        index.reload()
        return index

    @classmethod
    def build(
        cls, folder: pathlib.Path | None, stamp: str, texts: Iterable[tuple[int, str]]
    ) -> WordsIndex:
        """Makes an index.

        Args:
            folder: does not exist yet; None for an index in memory.
            stamp: says what it is made from.
            texts: ids from 1 on, and their texts.

        Raises:
            UnusableIndex: if the folder cannot be written.
        """
        index = cls(folder, new=True)
        index.update(stamp, texts)
        return index

    def reload(self) -> None:
        """Takes over what another process has changed.

        Raises:
            UnusableIndex: if the index is no longer there.
        """
        with _library_errors():
            self._index.reload()
            searcher = self._index.searcher()
            query = tantivy.Query.term_query(self._schema, "id", _STAMP_ID)
            hits = searcher.search(query, 1, count=False).hits
            if not hits:
                raise UnusableIndex("it is not complete")
            self.stamp: str = searcher.doc(hits[0][1])["stamp"][0]

    def update(
        self, stamp: str, added: Iterable[tuple[int, str]], removed: Iterable[int] = ()
    ) -> None:
        """Changes the index, all at once or not at all.

        Args:
            stamp: the new one.
            added: ids and texts.
            removed: ids; those that are not there are passed over.

        Raises:
            UnusableIndex: if it cannot be written.
        """
        with _library_errors():
            writer = self._index.writer(_WRITER_BYTES, num_threads=1)
            try:
                for text_id in (_STAMP_ID, *removed):
                    writer.delete_documents_by_term("id", text_id)
                for text_id, text in added:
                    fields = {"id": text_id, _TERMS: " ".join(words(text))}
                    writer.add_document(tantivy.Document(**fields))
                writer.add_document(tantivy.Document(id=_STAMP_ID, stamp=stamp))
                writer.commit()
            finally:
                # Also lets the next writer in.
                writer.wait_merging_threads()
        self.reload()

    def search(
        self, questions: Sequence[str], count: int, allowed: Int[np.ndarray, " n"] | None = None
    ) -> list[Ranking]:
        """Ranks texts by BM25.

        A text's score is the sum over the words that it shares with the question. Lengths count
        with the precision of one byte, and what was removed counts in the weights of words until
        the index is made anew.

        Args:
            questions: any texts.
            count: texts of a ranking; fewer if no others share a word.
            allowed: ids to choose from, ascending; None for all.

        Returns:
            For each question ids, best first, the lower id first of equal ones, and scores.

        Raises:
            UnusableIndex: if the index is found to be damaged.
        """
        with _library_errors():
            searcher = self._index.searcher()
            return [self._ranking(searcher, x, count, allowed) for x in questions]

    def ids(self) -> Int[np.ndarray, " n"]:
        """Ids of all texts, ascending.

        Raises:
            UnusableIndex: if the index is found to be damaged.
        """
        with _library_errors():
            searcher = self._index.searcher()
            ids, _ = _found(searcher, tantivy.Query.all_query(), searcher.num_docs)
        return np.setdiff1d(ids, [_STAMP_ID])

    def _ranking(
        self,
        searcher: tantivy.Searcher,
        question: str,
        count: int,
        allowed: Int[np.ndarray, " n"] | None,
    ) -> Ranking:
        queries = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, _TERMS, word, "freq"))
            for word in self._telling(searcher, question)
        ]
        if not queries or count < 1 or (allowed is not None and not len(allowed)):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        query = tantivy.Query.boolean_query(queries)
        # Of a ranking of everything, as much as will do if the allowed ones are spread evenly.
        limit = count if allowed is None else math.ceil(count * searcher.num_docs / len(allowed))
        while True:
            ids, scores = _found(searcher, query, limit)
            is_last = len(ids) < limit
            if allowed is not None:
                at = np.searchsorted(allowed, ids)
                kept = np.append(allowed, 0)[at] == ids
                ids, scores = ids[kept], scores[kept]
            if is_last or len(ids) >= count:
                order = np.lexsort((ids, -scores))[:count]
                return ids[order], scores[order]
            limit *= 4

    def _telling(self, searcher: tantivy.Searcher, question: str) -> list[str]:
        """The words of a question by which texts are told apart, the rarest first."""
        known = [(searcher.doc_freq(_TERMS, word), word) for word in set(words(question))]
        known = sorted(one for one in known if one[0])
        common = max(_COMMON_TEXTS, _COMMON_SHARE * searcher.num_docs)
        rare = [word for texts, word in known if texts <= common]
        return (rare or [word for _, word in known])[:_MOST_WORDS]


def index_exists(folder: pathlib.Path) -> bool:
    """Whether there is an index, sound or not."""
    return (folder / "meta.json").exists()


def remove_index(folder: pathlib.Path) -> None:
    """Deletes an index; what is left if that is interrupted is none."""
    (folder / "meta.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def damage(folder: pathlib.Path) -> Iterator[str]:
    """What is wrong with the bytes of an index, by the checksums at the ends of its files."""
    for path in sorted(folder.glob("*")):
        if not _SEGMENT_FILE.match(path.name):
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # Merged away meanwhile.
        size = int.from_bytes(data[-8:-4], "little")
        try:
            checksum = json.loads(data[-8 - size : -8])["crc"]
        except (ValueError, KeyError, TypeError):
            continue  # No such footer; the library will say so when it opens the file.
        if zlib.crc32(data[: -8 - size]) != checksum:
            yield f"{path.name}: the bytes are not those that were written"


def _found(searcher: tantivy.Searcher, query: tantivy.Query, limit: int) -> Ranking:
    hits = searcher.search(query, limit, count=False).hits
    ids = searcher.fast_field_values("id", [address for _, address in hits])
    return np.array(ids, np.int64), np.array([score for score, _ in hits], np.float32)


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    """Turns what the library raises, its panics too, into `UnusableIndex`."""
    try:
        yield
    except (UnusableIndex, StoreError):
        raise
    except BaseException as error:
        if isinstance(error, OSError | ValueError) or type(error).__name__ == "PanicException":
            raise UnusableIndex(str(error)) from error
        raise
