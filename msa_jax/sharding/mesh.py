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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each mesh axis; `data=-1` takes all that the other axes leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    memory: int = 1

    def __post_init__(self):
        check_fields(self, "mesh.")
        for axis in AXES:
            size = getattr(self, axis)
            if not isinstance(size, int) or (size < 1 and (axis, size) != ("data", -1)):
                raise ConfigError(
                    f"mesh.{axis} must be a positive whole number, not {size!r}; only mesh.data "
                    "may be -1, for all remaining devices."
                )


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
    other = config.fsdp * config.tensor * config.memory
    data = max(len(devices) // other, 1) if config.data == -1 else config.data
    sizes = (data, config.fsdp, config.tensor, config.memory)
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
