"""Documents named by the model: only names that exist can be spelled.

A document's name is a token sequence (`Template.retrieved`). Sorted, those that share a beginning
are neighbours, so that what has been spelled so far is a range of names, and the next token is one
of the few that its names go on with.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.templates import PromptBuilder
from msa_jax.typing import Float, Int

_ENDED = -1


class NameTable:
    """Names of documents, sorted.

    Encoding takes some 20 us a name on one core: seconds for a table of 400,000. Changing a table
    of that size by a few names takes some 10 ms. Arrays are replaced, never changed, so that who
    reads them is not disturbed.

    Attributes:
        ids: of the documents, in the order of their names.
        columns: tokens of the names, [longest, n]; -1 where a name has ended.
    """

    ids: Int[np.ndarray, " n"]
    columns: Int[np.ndarray, "W n"]

    def __init__(self, builder: PromptBuilder, ids: Sequence[int] | Int[np.ndarray, " n"] = ()):
        """Encodes the names of some documents; see `add`."""
        self._builder = builder
        self.ids, self.columns = np.zeros(0, np.int64), np.zeros((0, 0), np.int32)
        self.add(ids)

    def add(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        """Adds documents; those that are in the table already stay.

        Raises:
            ConfigError: if a name begins with another name, so that a reader cannot tell where it
                ends.
        """
        fresh = np.unique(np.asarray(ids, np.int64))
        fresh = fresh[np.isin(fresh, self.ids, invert=True)]
        if not len(fresh):
            return
        names = _as_columns(self._builder.names(fresh.tolist()))
        order = np.lexsort(names[::-1])
        width = max(len(names), len(self.columns))
        names, columns = _widened(names[:, order], width), _widened(self.columns, width)
        at = np.zeros(len(fresh), int)
        if len(self.ids):
            at[:] = [_position(columns, name) for name in names.T]
        columns = np.insert(columns, at, names, axis=1)
        self._check(columns)
        self.ids, self.columns = np.insert(self.ids, at, fresh[order]), columns

    def remove(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        """Removes documents, those that are there."""
        kept = np.isin(self.ids, np.asarray(ids, np.int64), invert=True)
        self.ids, self.columns = self.ids[kept], self.columns[:, kept]

    def _check(self, columns: Int[np.ndarray, "W n"]) -> None:
        one, next_one = columns[:, :-1], columns[:, 1:]
        if ((one == _ENDED) | (one == next_one)).all(axis=0).any():
            raise ConfigError(
                f"template.retrieved {self._builder.template.retrieved!r} lets a document's name "
                "begin with another's; end it with a character that is not in an id."
            )


class Speller:
    """One round of naming: some documents, each once, and an end; or `stop` instead.

    Attributes:
        named: ids of the documents named so far.
        finished: whether the end or `stop` is complete.
    """

    def __init__(
        self,
        table: NameTable,
        end: Sequence[int],
        stop: Sequence[int],
        max_names: int,
        log_weights: Float[np.ndarray, " n"] | None = None,
        read: Sequence[int] = (),
        required: Sequence[int] = (),
    ):
        """Starts at the first token.

        Args:
            table: documents that may be named; later changes of it have no effect.
            end: tokens after the last name.
            stop: tokens in place of names.
            max_names: most documents to name.
            log_weights: how probable each document of the table is, up to a factor; None if all
                that counts is what may be named.
            read: ids of documents that have been read, so that naming them would add nothing;
                those of the table cannot be named.
            required: ids of documents, best first, that a round which names any must name. The
                first name is free; those after it are of these, in any order, until all that can
                be named are, or the best of them if `max_names` leaves no room for all.
        """
        self.named: list[int] = []
        self.finished = False
        self._ids, self._columns = table.ids, table.columns
        self._end, self._stop = list(end), list(stop)
        self._max_names = max_names
        self._log_weights = log_weights
        # Where in the table the documents are that cannot be named any more, ascending.
        self._used: list[int] = np.flatnonzero(np.isin(table.ids, read)).tolist()
        self._required = [int(at) for x in required for at in np.flatnonzero(table.ids == x)]
        self._begin()

    def allowed(self) -> Int[np.ndarray, " n"]:
        """The tokens that may come next, at least one until finished."""
        tokens = self._continuations()
        if self._closing is not None:
            tokens = np.union1d(tokens, self._closing[self._depth])
        return tokens

    def biases(self) -> Float[np.ndarray, " n"] | None:
        """What to add to the logits of the tokens that may come next; None without weights.

        That is the logarithm of a token's share in the weight of the documents that can still be
        named here, so that the biases of a whole name add up to the logarithm of its own share. A
        token that only closes the round has the share of an average one: weights say which
        document is named, not whether one is.
        """
        if self._log_weights is None:
            return None
        allowed = self.allowed()
        if len(allowed) == 1:
            return np.zeros(1)
        weights = self._log_weights.copy()
        weights[self._barred] = -np.inf
        tokens, starts = self._branches()
        shares = np.logaddexp.reduceat(weights[self._low : self._high], starts)
        shares -= np.logaddexp.reduce(shares)
        is_open = shares > -np.inf
        biases = np.full(len(allowed), -np.log(is_open.sum()))
        biases[np.searchsorted(allowed, tokens[is_open])] = shares[is_open]
        return biases

    def advance(self, token: int) -> None:
        """Adds an allowed token.

        Raises:
            ValueError: if it continues nothing.
        """
        if self._low < self._high:
            column = self._columns[self._depth]
            self._low, self._high = _narrowed(column, self._low, self._high, token)
        if self._closing is not None and self._closing[self._depth] != token:
            self._closing = None
        if self._low == self._high and self._closing is None:
            raise ValueError(f"token {token} continues no name and is not the end of them.")
        self._depth += 1
        if self._closing is not None and self._depth == len(self._closing):
            self.finished = True
        elif self._name_ended():
            self.named.append(int(self._ids[self._low]))
            bisect.insort(self._used, self._low)
            self._begin()

    def follow(self) -> list[int]:
        """Adds the tokens that have no alternative, and returns them."""
        tokens = []
        while not self.finished and len(only := self.allowed()) == 1:
            tokens.append(int(only[0]))
            self.advance(tokens[-1])
        return tokens

    def _begin(self) -> None:
        """At a boundary: a name may follow, or what closes the round unless some name must."""
        room = self._max_names - len(self.named)
        self._depth = 0
        self._low, self._high = 0, len(self._ids) if room > 0 else 0
        self._closing, self._barred = self._end if self.named else self._stop, self._used
        due = [at for at in self._required if at not in self._used][:room] if self.named else []
        if due:
            self._closing = None
            self._barred = np.setdiff1d(np.arange(len(self._ids)), due).tolist()

    def _name_ended(self) -> bool:
        if self._low == self._high:
            return False
        whole = self._depth == len(self._columns)
        return whole or self._columns[self._depth, self._low] == _ENDED

    def _continuations(self) -> Int[np.ndarray, " n"]:
        """Tokens that lead to a name that may be given here, ascending."""
        if self._low == self._high:
            return np.zeros(0, np.int32)
        tokens, starts = self._branches()
        stops = np.append(starts[1:], self._high - self._low)
        barred = np.array(self._barred, int) - self._low
        num_barred = np.searchsorted(barred, stops) - np.searchsorted(barred, starts)
        return tokens[num_barred < stops - starts]

    def _branches(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Next tokens of the names in the range, ascending, and where in it those of each begin."""
        column = self._columns[self._depth, self._low : self._high]
        starts = np.append(0, 1 + np.flatnonzero(np.diff(column)))
        return column[starts], starts


def _as_columns(names: Sequence[np.ndarray]) -> Int[np.ndarray, "W n"]:
    lengths = np.array([len(name) for name in names])
    rows = np.full((len(names), lengths.max()), _ENDED, np.int32)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.concatenate(names)
    return np.ascontiguousarray(rows.T)


def _widened(columns: Int[np.ndarray, "W n"], width: int) -> Int[np.ndarray, "width n"]:
    return np.pad(columns, ((0, width - len(columns)), (0, 0)), constant_values=_ENDED)


def _position(columns: Int[np.ndarray, "W n"], name: Int[np.ndarray, " W"]) -> int:
    """Where a name belongs among others."""
    low, high = 0, columns.shape[1]
    for column, token in zip(columns, name, strict=True):
        low, high = _narrowed(column, low, high, token)
    return low


def _narrowed(column: Int[np.ndarray, " n"], low: int, high: int, token: int) -> tuple[int, int]:
    """The part of a range whose names have this token; where it belongs if there is none."""
    first, last = np.searchsorted(column[low:high], [token, token + 1])
    return low + int(first), low + int(last)
