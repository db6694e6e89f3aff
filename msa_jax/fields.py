"""What a setting may be, said in its annotation and checked in one place.

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: Count
        temperature: Positive = 1.0
        schedule: Annotated[str, OneOf(("cosine", "constant"))] = "cosine"

        def __post_init__(self):
            check_fields(self)

Flags of programs use the same annotations (`flag_types.py`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np

from msa_jax.errors import ConfigError

# Arrays count in 32 bits.
_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number. `above` and `below` are bounds that it must not reach itself."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def describe(self, what: str) -> str:
        """The rule in words; `what` is "number" or "whole number"."""
        if self in (Within(above=0), Within(low=1)):
            return f"a positive {what}"
        if self.low is not None and self.high is not None:
            return f"a {what} from {self.low} to {self.high}"
        if self == Within(low=self.low):
            return f"a {what}" if self.low is None else f"a {what} from {self.low} on"
        bounds = {
            "at least": self.low,
            "above": self.above,
            "at most": self.high,
            "below": self.below,
        }
        said = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return f"a {what} {' and '.join(said)}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The only texts that a field may hold."""

    choices: tuple[str, ...]


Count = Annotated[int, Within(low=1)]
CountOrZero = Annotated[int, Within(low=0)]
Seed = Annotated[int, Within(low=0, high=2**32 - 1)]
Number = float
Positive = Annotated[float, Within(above=0)]
NonNegative = Annotated[float, Within(low=0)]
Share = Annotated[float, Within(low=0, high=1)]


def check_fields(config: Any, where: str = "") -> None:
    """Checks every field of a dataclass against its annotation.

    Args:
        config: an instance.
        where: what messages put before a field's name, such as "optimizer.".

    Raises:
        ConfigError: for the first field that is not what its annotation says.
    """
    check_values(type(config), vars(config), where)


def check_values(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """`check_fields` of values for the fields of a dataclass, before there is an instance."""
    hints = field_types(cls)
    for name, value in values.items():
        check_value(f"{where}{name}", value, hints[name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Checks one value against an annotation.

    Raises:
        ConfigError: naming the value, or the member of it, that is wrong.
    """
    for path, rule, found in _problems(name, value, hint):
        raise ConfigError(f"{path} must be {rule}, not {_shown(found)}.")


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass by field."""
    return typing.get_type_hints(cls, include_extras=True)


def without_none(hint: Any) -> Any:
    """`X` of `X | None`, and any other annotation as it is."""
    kinds = [kind for kind in _alternatives(hint) if kind is not types.NoneType]
    return kinds[0] if len(kinds) == 1 else hint


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _problems(path: str, value: Any, hint: Any) -> Iterator[tuple[str, str, Any]]:
    """What is wrong with a value: the path of a member, what it must be, and what it is."""
    alternatives = _alternatives(hint)
    if len(alternatives) == 1:
        yield from _problems_of_one(path, value, hint)
        return
    found = [list(_problems(path, value, kind)) for kind in alternatives]
    if all(found):
        # Said of the alternative that is meant: the one of which only a member is wrong.
        closest = next((x for x in found if x[0][0] != path), None)
        rules = [x[0][1] for x in found]
        yield closest[0] if closest else (path, " or ".join(rules), value)


def _problems_of_one(path: str, value: Any, hint: Any) -> Iterator[tuple[str, str, Any]]:
    base, *rules = (
        (hint.__origin__, *hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint,)
    )
    origin, members = typing.get_origin(base) or base, typing.get_args(base)
    if base is Any:
        return
    if origin in (int, float):
        rule = _number_problem(value, origin, *rules)
        if rule:
            yield path, rule, value
    elif origin is tuple:
        if not isinstance(value, list | tuple):
            yield path, "a tuple", value
            return
        for at, member in enumerate(value):
            yield from _problems(f"{path}[{at}]", member, members[0])
    elif origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            yield path, "a section with fields", value
            return
        for name, member in value.items():
            yield from _problems(f"{path}.{name}", member, members[1])
    elif isinstance(origin, type) and not isinstance(value, origin):
        yield path, _KINDS.get(origin, origin.__name__), value
    elif rules and value not in rules[0].choices:
        yield path, f"one of {', '.join(rules[0].choices)}", value


_KINDS = {types.NoneType: "None", str: "text", bool: "true or false"}


def _number_problem(value: Any, kind: type, bounds: Within = Within()) -> str | None:
    """What a number must be, if it is not that."""
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or not bounds.allows(value):
            return bounds.describe("whole number")
        most = _LARGEST if bounds.high is None else bounds.high
        return f"at most {most}" if value > most else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return bounds.describe("number")
    single = _as_computed(value)
    return None if math.isfinite(single) and bounds.allows(single) else bounds.describe("number")


def _as_computed(value: float) -> float:
    """A number in the precision that devices have; what rounds to zero or infinity is that."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(value))
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits.
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."
