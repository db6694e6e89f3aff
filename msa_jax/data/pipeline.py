"""From JSON Lines to training batches: deterministic, resumable, sharded by process."""

from __future__ import annotations

from typing import Any

import grain
import jax
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.core.segments import LookBatch, TrainingBatch
from msa_jax.data.assembly import GroupAssembler
from msa_jax.data.config import BatchShape, DataConfig, ListShape, SourceConfig
from msa_jax.data.dataset import TextDataset
from msa_jax.data.lists import ListAssembler
from msa_jax.data.mixing import question_order

__all__ = [
    "BatchShape",
    "DataConfig",
    "ListShape",
    "SourceConfig",
    "TextDataset",
    "training_iterator",
]

# Assembling holds the interpreter lock most of the time: more threads would only contend for it.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def training_iterator(
    dataset: TextDataset,
    shape: BatchShape | ListShape,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Yields `TrainingBatch`es of NumPy arrays without end, or `LookBatch`es, as the shape says.

    Step n depends on `seed` and n alone. Questions come as `question_order` says. The processes'
    batches, joined along the group axis in order of `process_index`, are the batch that one
    process alone would get. `get_state` gives a JSON-able dict that `set_state` takes back.

    Args:
        dataset: what to train on.
        shape: sizes over all processes; this one gets `groups / process_count` of the groups.
        seed: in [0, 2**32).
        process_index: which process this is.
        process_count: how many share the groups.

    Raises:
        ConfigError: if the shape does not fit the dataset or the processes.
    """
    is_list = isinstance(shape, ListShape)
    assembler = (ListAssembler if is_list else GroupAssembler)(dataset, shape)
    if shape.groups % process_count:
        raise ConfigError(
            f"groups ({shape.groups}) must be a multiple of the processes ({process_count})."
        )
    share = shape.groups // process_count
    mine = slice(process_index * share, (process_index + 1) * share)

    def build_step(chosen: np.ndarray, rng: np.random.Generator) -> TrainingBatch | LookBatch:
        # One seed per group, so that a process can skip the groups of the others.
        seeds = rng.integers(0, 2**63, size=shape.groups)
        groups = [
            assembler.assemble(questions, np.random.default_rng(group_seed))
            for questions, group_seed in zip(chosen[mine], seeds[mine], strict=True)
        ]
        return _stack(groups)

    sizes = {name: len(queries) for name, queries in dataset.sources.items()}
    steps = question_order(sizes, shape, seed)
    if not is_list:
        assembler.check_room(steps[0][0], np.random.default_rng(seed))
    return iter(steps.seed(seed).random_map(build_step).to_iter_dataset(_READING))


def _stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
