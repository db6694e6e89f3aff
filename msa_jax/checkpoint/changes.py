"""What training changed of a matrix, in less room than the matrix takes.

A change is kept as arrays by name, whose names say how:

    low_rank    `lora_a` [r, in] and `lora_b` [out, r] in bfloat16: their product
    eight_bit   `codes`, `steps` [out]: whole multiples of a step of each row

Most codes fit 8 bits, and Huffman codes take less than that: about 7.3 bits a value where the
change has a normal distribution. The step is a fixed part of a row's root mean square, so the error
is known: `1 / (STEPS_PER_RMS * sqrt(12))`, 0.8 % of the change, in every row and however far
outliers lie.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.typing import Array, Float

STEPS_PER_RMS = 36


def low_rank(change: Float[np.ndarray, "out in"], rank: int) -> dict[str, np.ndarray]:
    """The nearest change of a rank, or of a matrix's own if that is less; computed on a device."""
    a, b = _factors(change, min(rank, *change.shape))
    return {"lora_a": np.asarray(a), "lora_b": np.asarray(b)}


@partial(jax.jit, static_argnums=1)
def _factors(change: Float[Array, "out in"], rank: int) -> tuple[Array, Array]:
    left, values, right = jnp.linalg.svd(change, full_matrices=False)
    # Half of the size to each, so that neither is too small or large for its type.
    root = jnp.sqrt(values[:rank])
    a, b = root[:, None] * right[:rank], left[:, :rank] * root
    return a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)


def eight_bit(change: Float[np.ndarray, "out in"]) -> dict[str, np.ndarray]:
    """The change in steps of each row, most of them from -128 to 127."""
    steps = np.sqrt(np.square(change).mean(axis=1)) / STEPS_PER_RMS
    # One value of a row is at most sqrt(in) times the root mean square: far from what 16 bits hold.
    whole = np.rint(change / np.where(steps, steps, 1)[:, None]).astype(np.int16)
    # Small numbers of either sign become small bytes, and the upper bytes are nearly all zero.
    folded = (whole << 1) ^ (whole >> 15)
    planes = np.stack([folded & 255, folded >> 8]).astype(np.uint8)
    packer = zlib.compressobj(memLevel=9, strategy=zlib.Z_RLE)
    packed = packer.compress(planes.tobytes()) + packer.flush()
    return {"codes": np.frombuffer(packed, np.uint8), "steps": steps.astype(np.float32)}


def restore(parts: Mapping[str, np.ndarray], shape: tuple[int, int]) -> Float[np.ndarray, "out in"]:
    """The change, in float32, to the bit the same on every machine.

    Args:
        parts: what `low_rank` or `eight_bit` returned.
        shape: of the matrix.

    Raises:
        ValueError: if these are not the parts of such a change.
    """
    kept = {name: (part.shape, part.dtype) for name, part in parts.items()}
    if kept.keys() == {"codes", "steps"}:
        return _from_codes(parts["codes"], parts["steps"], shape)
    rows, columns = shape
    rank = kept.get("lora_a", ((0,),))[0][0]
    expected = {"lora_a": (rank, columns), "lora_b": (rows, rank)}
    if kept != {name: (size, jnp.bfloat16) for name, size in expected.items()}:
        raise ValueError(f"{kept} are not the parts of a change of shape {shape}")
    # In double precision, in which the order of summation does not show once it is rounded.
    return (parts["lora_b"].astype(float) @ parts["lora_a"].astype(float)).astype(np.float32)


def _from_codes(
    codes: np.ndarray, steps: np.ndarray, shape: tuple[int, int]
) -> Float[np.ndarray, "out in"]:
    try:
        planes = np.frombuffer(zlib.decompress(codes.tobytes()), np.uint8)
    except zlib.error as error:
        raise ValueError(f"the codes cannot be unpacked ({error})") from error
    if steps.shape != shape[:1] or planes.size != 2 * shape[0] * shape[1]:
        raise ValueError(f"{planes.size} bytes and {steps.size} steps are not of shape {shape}")
    lower, upper = planes.reshape(2, *shape)
    folded = lower | (upper.astype(np.int16) << 8)
    return ((folded >> 1) ^ -(folded & 1)) * steps.astype(np.float32)[:, None]
