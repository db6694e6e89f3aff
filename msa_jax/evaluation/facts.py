"""With what a suite was measured, and how long it took."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories


class Stopwatch:
    """Adds the seconds that pass to those of a stage."""

    def __init__(self, seconds: dict[str, float], stage: str):
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        passed = time.monotonic() - self._start
        self._seconds[self._stage] = round(self._seconds.get(self._stage, 0.0) + passed, 1)


def facts_of(
    corpus: Corpus,
    sets: Mapping[str, Memories],
    seconds: Mapping[str, float],
    interleave: InterleaveConfig,
    command: Sequence[str],
) -> dict[str, Any]:
    """What to know of a run besides its results.

    Args:
        corpus: the documents.
        sets: memories by the name of the set.
        seconds: that each stage took.
        interleave: how much was read before an answer.
        command: that started it.
    """
    device, stats = jax.devices()[0], jax.devices()[0].memory_stats() or {}
    packages = ("msa_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "bm25s")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(command),
        "device": device.device_kind,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": versions,
        "corpus": {
            "parts": len(corpus),
            "tokens": int(corpus.stops[-1]),
            "parts_by_pool": {
                pool: int((corpus.pool == i).sum()) for i, pool in enumerate(corpus.pools)
            },
        },
        "questions": {name: len(one.questions) for name, one in sets.items()},
        "seconds": dict(seconds),
        "interleave": dataclasses.asdict(interleave),
    }
