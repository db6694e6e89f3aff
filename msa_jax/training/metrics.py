"""Metrics on disk: `metrics.jsonl` for programs and TensorBoard event files for people."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends one line a log step; a resumed run first drops the lines that it will repeat."""

    def __init__(self, directory: str | Path, restored_step: int = 0):
        """Opens the files.

        Args:
            directory: where `metrics.jsonl` and the event files go.
            restored_step: the step that training continues from; later lines are dropped.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        _truncate(path, restored_step)
        self._lines = path.open("a", encoding="utf-8")
        self._events = EventFileWriter(str(directory / "tensorboard"))
        if restored_step:
            # TensorBoard hides what a killed run wrote from this step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add_event(restored_step + 1, session_log=start)

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one step; they are on disk when this returns."""
        self._lines.write(json.dumps({"stage": stage, "step": step, **metrics}) + "\n")
        self._lines.flush()
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._add_event(step, summary=summary_pb2.Summary(value=values))

    def _add_event(self, step: int, **content) -> None:
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Flushes and closes the files."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(directory: str | Path) -> list[dict]:
    """The lines of `metrics.jsonl`; a last line that a killed run left half-written is ignored."""
    path = Path(directory) / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last newline is empty, or half a line.
    return [json.loads(line) for line in lines[:-1]]


def _truncate(path: Path, last_step: int) -> None:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= last_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
