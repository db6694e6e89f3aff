"""Loads a folder onto a mesh in a process of its own, and prints how much memory that took.

python memory_worker.py FOLDER DTYPE
"""

import json
import os
import sys

# Before anything imports JAX: devices to shard over.
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}

import jax

from msa_jax.checkpoint.huggingface import load_params, read_model_config
from msa_jax.modules.init import init_params
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from msa_jax.sharding.rules import state_shardings


def memory(line):
    """Bytes of this process: "VmRSS" that are in memory now, "VmHWM" that were at its peak."""
    with open("/proc/self/status") as file:
        return next(int(row.split()[1]) * 1024 for row in file if row.startswith(f"{line}:"))


def main(folder, dtype):
    config = read_model_config(folder)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    key = jax.random.key(0)
    abstract = jax.eval_shape(lambda key: init_params(config, key), key)
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place),
        abstract,
        state_shardings(abstract, mesh),
    )
    before = memory("VmRSS")
    params = load_params(folder, config, key, abstract)
    peak = memory("VmHWM")
    leaves = jax.tree.leaves(params)
    first = params["plain_0"]["mlp"]["gate_proj"]["kernel"]
    report = {
        "peak_bytes": peak - before,
        "array_bytes": sum(leaf.nbytes for leaf in leaves),
        "places": max(len(leaf.sharding.device_set) for leaf in leaves),
        "shard": list(first.addressable_shards[-1].data.shape),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
