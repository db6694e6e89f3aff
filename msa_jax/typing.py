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

from typing import Any, TypeAlias

import jax
from jaxtyping import Bool, Float, Int

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
PyTree: TypeAlias = Any

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKey", "PyTree"]
