import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msa_jax.training.metrics import FILE_NAME, MetricsWriter, read_metrics


def write_steps(directory, steps, restored_step=0):
    with MetricsWriter(directory, restored_step) as writer:
        for step in steps:
            writer.write("main", step, {"loss": step / 4})


def test_a_line_holds_stage_step_and_metrics(tmp_path):
    write_steps(tmp_path, [1, 2])
    assert read_metrics(tmp_path) == [
        {"stage": "main", "step": 1, "loss": 0.25},
        {"stage": "main", "step": 2, "loss": 0.5},
    ]


@pytest.mark.parametrize("restored_step", [0, 2])
def test_a_resumed_run_repeats_no_line(tmp_path, restored_step):
    write_steps(tmp_path, [1, 2, 3, 4])
    with (tmp_path / FILE_NAME).open("a") as lines:
        lines.write('{"stage": "main", "st')  # Killed while writing.
    write_steps(tmp_path, range(restored_step + 1, 6), restored_step)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    text = (tmp_path / FILE_NAME).read_text()
    assert all(json.loads(line) for line in text.splitlines())


def test_tensorboard_shows_each_step_once(tmp_path, monkeypatch):
    write_steps(tmp_path, [1, 2, 3, 4])
    # A run goes on later, and TensorBoard reads files in the order of the seconds in their names.
    later = time.time() + 1
    monkeypatch.setattr(time, "time", lambda: later)
    write_steps(tmp_path, [3, 4, 5], restored_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(step, step / 4) for step in range(1, 6)]
