"""Kills writers of a bank and looks at what they leave; run by test_store_crash.py.

    python -m tests.memory.crash_worker random|steps DIRECTORY SEED

A writer says on a pipe what it is about to do, and when that is done. After its death the bank must
be as after the last thing that was done, or as after the one that was under way.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from msa_jax.data.records import Document
from msa_jax.memory import segments
from msa_jax.memory.store import Store

from .banks import LAYOUT, contents, create, encode

Model = dict[str, Any]

_DISK_CALLS = {
    "execute",
    "executemany",
    "executescript",
    "open",
    "pwrite",
    "fsync",
    "truncate",
    "unlink",
}

# Blocks of a few parts and segments of a few blocks, so that all edges are met.
segments.BLOCK_BYTES = 6 * sum(LAYOUT.bytes_per_chunk())
segments.SEGMENT_BYTES = 3 * segments.BLOCK_BYTES


def kill_at_random(path: str, seed: int, rounds: int = 200) -> int:
    """Kills writers at random moments; returns how many."""
    rng = random.Random(seed)
    create(path).close()
    model: Model = {}
    for _ in range(rounds):
        child_rng = random.Random(rng.random())
        messages = _messages(
            lambda say, child_rng=child_rng: _change_at_random(path, child_rng, say),
            kill_after=rng.randint(0, 2),
            seconds=rng.uniform(0, 0.01),
        )
        model = _check(path, model, messages)
    return rounds


def kill_at_steps(path: str, seed: int) -> int:
    """Kills a writer before every call of a commit and of a compaction that touches the disk."""
    rng = random.Random(seed)
    # In a process of its own, as in `_check`.
    _messages(lambda say: _fill(path))
    with Store.open(path) as store:
        model = contents(store)
    killed = 0
    for make_change in (_random_commit, lambda *_: {"compact": True}):
        for step in itertools.count(1):
            messages = _messages(
                lambda say, step=step, make=make_change: _change_up_to(path, make, rng, step, say)
            )
            model = _check(path, model, messages)
            if "done" in messages:
                break
            killed += 1
    return killed


def _fill(path: str) -> None:
    with create(path) as store:
        for number in range(8):
            _apply(
                store, {"puts": {f"k{number}": "text" * 8}, "ids": {f"k{number}": 4 * number + 1}}
            )


def _change_up_to(
    path: str, make_change: Callable, rng: random.Random, step: int, say: Callable[[str], None]
) -> None:
    """Dies before the n-th call of a change that touches the disk."""
    steps = itertools.count(1)

    def die(_frame: Any, event: str, function: Any) -> None:
        touches = event == "c_call" and function.__name__ in _DISK_CALLS
        if touches and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with Store.open(path, write=True) as store:
        change = make_change(store, rng)
        say(json.dumps(change))
        sys.setprofile(die)
        _apply(store, change)
        sys.setprofile(None)
        say("done")


def _change_at_random(path: str, rng: random.Random, say: Callable[[str], None]) -> None:
    with Store.open(path, write=True) as store:
        while True:
            change = _random_change(store, rng)
            say(json.dumps(change))
            _apply(store, change)
            say("done")


def _random_change(store: Store, rng: random.Random) -> Model:
    return {"compact": True} if rng.random() < 0.3 else _random_commit(store, rng)


def _random_commit(store: Store, rng: random.Random) -> Model:
    keys = rng.sample([f"k{n}" for n in range(12)], 4)
    puts = {key: "".join(rng.choices("abc ", k=rng.randint(1, 40))) for key in keys[:2]}
    ids = {key: store.reserve_ids(-(-len(text) // 8)).start for key, text in puts.items()}
    return {"puts": puts, "ids": ids, "deletes": [key for key in keys[2:] if key in store]}


def _apply(store: Store, change: Model) -> None:
    if "compact" in change:
        store.compact(0.0)
        return
    documents = [Document(key, text) for key, text in change["puts"].items()]
    puts = [encode(x, change["ids"][x.id]) for x in documents]
    store.commit(puts, change.get("deletes", ()))


def _after(model: Model, change: Model) -> Model:
    model = {key: value for key, value in model.items() if key not in change.get("deletes", ())}
    for key, text in change.get("puts", {}).items():
        start = change["ids"][key]
        model[key] = (tuple(range(start, start - (-len(text) // 8))), text, {})
    return model


def _messages(
    write: Callable[[Callable[[str], None]], None],
    kill_after: int | None = None,
    seconds: float = 0,
) -> list[str]:
    """What a child process says, which is killed some seconds after it has done so many things."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        write(lambda text: os.write(writing, f"{text}\n".encode()))
        os._exit(0)
    os.close(writing)
    lines = []
    with open(reading) as messages:
        if kill_after is not None:
            while lines.count("done") < kill_after:
                lines.append(next(messages).rstrip())
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        lines += messages.read().splitlines()
    os.waitpid(child, 0)
    return lines


def _check(path: str, model: Model, messages: list[str]) -> Model:
    """The bank's contents, which must follow from the messages."""
    last_id = max((max(ids) for ids, *_ in model.values()), default=0)
    candidates = [model]
    for message in messages:
        if message == "done":
            candidates = candidates[1:]
            continue
        change = json.loads(message)
        assert min(change.get("ids", {"": last_id + 1}).values()) > last_id, (last_id, change)
        candidates.append(_after(candidates[-1], change))
    with Store.open(path) as store:
        found = contents(store)
    assert found in candidates, (found, candidates)
    # In a process of its own: it starts threads, which must not be there when a writer is forked.
    said = _messages(lambda say: _verify(path, say))
    assert said == ["sound"], said
    return found


def _verify(path: str, say: Callable[[str], None]) -> None:
    with Store.open(path, write=True) as store:
        say("; ".join(store.verify()) or "sound")


if __name__ == "__main__":
    mode, path, seed = sys.argv[1:]
    print({"random": kill_at_random, "steps": kill_at_steps}[mode](path, int(seed)))
