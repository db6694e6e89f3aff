"""What a bank keeps of its documents: pooled arrays of all router layers, chunk by chunk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import ml_dtypes  # noqa: F401  (registers bfloat16 and float8 with NumPy)
import numpy as np

from msa_jax.fields import Count, OneOf, check_fields
from msa_jax.finite import all_finite
from msa_jax.typing import Float

EIGHT_BITS = ("int8", "float8_e4m3fn")
DTYPES = ("float32", "bfloat16", *EIGHT_BITS)
_SCALE = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes and types of a bank's arrays.

    Attributes:
        num_layers: L, router layers.
        num_kv_heads: K.
        head_dim: H.
        pooling_kernel_size: P, tokens per chunk.
        max_document_tokens: longest part, its id and template included.
        key_dtype: of routing keys; in 8 bits each chunk has a scale.
        content_dtype: of pooled keys and values; in 8 bits each has a scale per chunk.
    """

    num_layers: Count
    num_kv_heads: Count
    head_dim: Count
    pooling_kernel_size: Count
    max_document_tokens: Count
    key_dtype: Annotated[str, OneOf(DTYPES)] = "bfloat16"
    content_dtype: Annotated[str, OneOf(DTYPES)] = "bfloat16"

    def __post_init__(self):
        check_fields(self)

    @property
    def key_size(self) -> int:
        """D = K * H."""
        return self.num_kv_heads * self.head_dim

    @property
    def max_document_chunks(self) -> int:
        """Chunks of the longest part."""
        return -(-self.max_document_tokens // self.pooling_kernel_size)

    def fields(self, num_chunks: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each array of `Chunks` that the layout has, in order."""
        chunks = (self.num_layers, num_chunks)
        heads = (2, self.num_kv_heads, self.head_dim)
        fields = {"keys": ((*chunks, self.key_size), np.dtype(self.key_dtype))}
        if self.key_dtype in EIGHT_BITS:
            fields["key_scale"] = (chunks, _SCALE)
        fields["content"] = ((*chunks, *heads), np.dtype(self.content_dtype))
        if self.content_dtype in EIGHT_BITS:
            fields["content_scale"] = ((*chunks, 2), _SCALE)
        return fields

    def bytes_per_chunk(self) -> tuple[int, int]:
        """Bytes of a chunk's routing keys, and of its content, in all layers."""
        sizes = {
            name: math.prod(shape) * dtype.itemsize
            for name, (shape, dtype) in self.fields(1).items()
        }
        keys = sizes["keys"] + sizes.get("key_scale", 0)
        return keys, sum(sizes.values()) - keys


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Arrays of n chunks on the host.

    Attributes:
        keys: routing keys, heads flattened, ready for the product.
        content: pooled keys (0) and values (1); None where only routing keys were read.
        key_scale: of 8-bit keys, else None.
        content_scale: of 8-bit content, else None.
    """

    keys: Float[np.ndarray, "L n D"]
    content: Float[np.ndarray, "L n 2 K H"] | None = None
    key_scale: Float[np.ndarray, "L n"] | None = None
    content_scale: Float[np.ndarray, "L n 2"] | None = None

    def __len__(self) -> int:
        return self.keys.shape[1]

    def __getitem__(self, at: slice | np.ndarray) -> Chunks:
        return Chunks(**{name: array[:, at] for name, array in self.arrays()})

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays that there are, by field name."""
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if array is not None:
                yield field.name, array

    def not_finite(self) -> list[str]:
        """Names of the arrays that hold NaN or infinity."""
        return [name for name, array in self.arrays() if not all_finite(array)]

    @staticmethod
    def concatenate(parts: Sequence[Chunks]) -> Chunks:
        """Chunks of several, in order."""
        names = [name for name, _ in parts[0].arrays()]
        return Chunks(
            **{name: np.concatenate([getattr(x, name) for x in parts], axis=1) for name in names}
        )
