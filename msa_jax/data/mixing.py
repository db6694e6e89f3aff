"""In which order questions come: sources mixed by weights, neighbours kept together."""

from __future__ import annotations

from collections.abc import Mapping

import grain
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.data.config import BatchShape, ListShape


def question_order(
    sizes: Mapping[str, int], shape: BatchShape | ListShape, seed: int
) -> grain.MapDataset:
    """Steps without end, each `[G, B, 2]`: the source, by its place in `sizes`, and the number.

    Every question of a source comes once per epoch of that source; with clusters, some of the
    first may come twice.

    Args:
        sizes: how many questions each source has.
        shape: of a step.
        seed: in [0, 2**32).

    Raises:
        ConfigError: if the shape's mixture or cluster does not fit the sources.
    """
    weights = _weights(sizes, shape)
    clusters = [
        _clusters(number, name, sizes[name], shape.cluster, seed)
        for number, name in enumerate(sizes)
        if name in weights
    ]
    mixed = clusters[0]
    if len(clusters) > 1:
        mixed = grain.MapDataset.mix(clusters, [weights[name] for name in sizes if name in weights])
    questions_per_step = shape.groups * shape.queries_per_group
    return mixed.batch(questions_per_step // shape.cluster, drop_remainder=True).map(
        lambda step: step.reshape(shape.groups, shape.queries_per_group, 2)
    )


def _clusters(number: int, name: str, size: int, cluster: int, seed: int) -> grain.MapDataset:
    """Clusters of one source in random order, `[cluster, 2]`, without end."""
    if size < cluster:
        raise ConfigError(f"cluster ({cluster}) exceeds the {size} questions of source {name!r}.")

    def neighbours(index: int) -> np.ndarray:
        # The last cluster goes on with the first questions.
        questions = (index * cluster + np.arange(cluster)) % size
        return np.stack([np.full(cluster, number), questions], axis=1)

    # Sources of one size must not be shuffled alike.
    (own_seed,) = np.random.SeedSequence((seed, number)).generate_state(1).tolist()
    indexes = grain.MapDataset.range(-(-size // cluster))
    return indexes.seed(own_seed).shuffle().map(neighbours).repeat()


def _weights(sizes: Mapping[str, int], shape: BatchShape | ListShape) -> Mapping[str, float]:
    """Weights of sources; by default, that of a question is the same in all of them."""
    if shape.mixture is None:
        return {name: float(size) for name, size in sizes.items()}
    for name in shape.mixture:
        if name not in sizes:
            raise ConfigError(
                f"mixture names {name!r}, which is not a source of questions: {', '.join(sizes)}."
            )
    return shape.mixture
