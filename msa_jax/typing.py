"""Array types used in signatures, and the letters that name their axes.

One letter means one thing everywhere in the package:

    G  memory groups (one memory shared by B queries)   L  layers
    B  queries of a group                               V  vocabulary
    T  active tokens (template head, query, response)   N  query heads
    R  memory rows                                      K  key/value heads
    S  tokens per memory row                            H  head dimension
    M  documents of a memory                            D  embedding dimension
    C  chunks of a memory                               F  hidden dimension of the MLP
    P  tokens per chunk (the pooling size)              X  context slots (chosen chunks)
"""

import dataclasses
from typing import Any, TypeAlias, dataclass_transform

import jax
from jaxtyping import Bool, Float, Int

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
PyTree: TypeAlias = Any

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKey", "PyTree", "pytree", "static"]


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a `pytree` class that is part of its structure, not an array."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def pytree(cls: type) -> type:
    """Makes a frozen dataclass whose fields are the children of a JAX pytree."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    meta_fields = [field.name for field in fields if field.metadata.get("static")]
    data_fields = [field.name for field in fields if field.name not in meta_fields]
    return jax.tree_util.register_dataclass(cls, data_fields, meta_fields)
