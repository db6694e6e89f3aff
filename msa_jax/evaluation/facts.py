"""With what something was measured, and how long it took."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.evaluation.conditions import Conditions, digest_json
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories

_PACKAGES = ("msa_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "bm25s")
_CHECKOUT = Path(__file__).parents[2]
# Names the commit where the sources were copied without their history.
COMMIT_VARIABLE = "MSA_JAX_COMMIT"


class Stopwatch:
    """Adds the seconds that pass to those of a stage."""

    def __init__(self, seconds: dict[str, float], stage: str):
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        passed = time.monotonic() - self._start
        self._seconds[self._stage] = round(self._seconds.get(self._stage, 0.0) + passed, 1)


def environment(command: str) -> dict[str, Any]:
    """What a figure comes from: the command, the code, the machine and the versions.

    Args:
        command: that started it.
    """
    return {
        "command": command,
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def commit() -> str | None:
    """Of the checkout that runs, with "+" if its code was changed since; None if nobody knows."""
    given = os.environ.get(COMMIT_VARIABLE)
    if given or not (_CHECKOUT / ".git").exists():
        return given
    code = [x for x in ("msa_jax", "benchmarks", "configs") if (_CHECKOUT / x).is_dir()]
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    call = ["git", "-C", str(_CHECKOUT), *arguments]
    return subprocess.run(call, capture_output=True, check=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def facts_of(
    corpus: Corpus,
    sets: Mapping[str, Memories],
    seconds: Mapping[str, float],
    interleave: InterleaveConfig,
    conditions: Mapping[str, Conditions],
    command: str,
) -> dict[str, Any]:
    """What to know of a run besides its results.

    Args:
        corpus: the documents.
        sets: memories by the name of the set.
        seconds: that each stage took.
        interleave: how much was read before an answer.
        conditions: of what was measured.
        command: that started it.
    """
    stats = jax.devices()[0].memory_stats() or {}
    return environment(command) | {
        "conditions": digest_json(conditions),
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
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
