"""The device mesh and its four axes.

data    memory groups; parameters are replicated
fsdp    memory groups; parameters are cut along the embedding dimension
tensor  attention heads, MLP hidden dimension, vocabulary
memory  memory rows: a longer training memory is more devices on this axis
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from msa_jax.config import ConfigError
from msa_jax.fields import check_fields

AXES = ("data", "fsdp", "tensor", "memory")
REST = -1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; one of them may be -1, for all that the others leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    memory: int = 1

    def __post_init__(self):
        check_fields(self, "mesh.")
        for axis in AXES:
            size = getattr(self, axis)
            if not isinstance(size, int) or (size < 1 and size != REST):
                raise ConfigError(
                    f"mesh.{axis} must be a positive whole number, or -1 for all remaining devices,"
                    f" not {size!r}."
                )
        rest = [f"mesh.{axis}" for axis in AXES if getattr(self, axis) == REST]
        if len(rest) > 1:
            raise ConfigError(
                f"{' and '.join(rest)} cannot both be -1; one axis takes all remaining devices."
            )

    def sizes(self, num_devices: int) -> tuple[int, int, int, int]:
        """Devices on each axis, in the order of `AXES`, where there are so many in all."""
        sizes = [getattr(self, axis) for axis in AXES]
        given = math.prod(size for size in sizes if size != REST)
        rest = max(num_devices // given, 1)
        return tuple(rest if size == REST else size for size in sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over the first devices that it needs.

    Args:
        config: axis sizes.
        devices: devices to use; all of them by default.

    Raises:
        ConfigError: when the product of the sizes does not divide the number of devices, or leaves
            a process without any.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    needed = math.prod(sizes)
    shape = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if len(devices) % needed:
        raise ConfigError(
            f"mesh {shape} has {needed} places, which does not divide the {len(devices)} devices; "
            f"choose sizes whose product divides {len(devices)}."
        )
    used, left = ({x.process_index for x in part} for part in (devices[:needed], devices[needed:]))
    if left - used:
        raise ConfigError(
            f"mesh {shape} has no place for the devices of process {min(left - used)}; choose "
            "larger sizes, or start fewer processes."
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices[:needed])
