"""A bank whose writer was killed is as before or after the change under way, and sound."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(("mode", "at_least"), [("random", 200), ("steps", 40)])
def test_killed_writers_leave_a_sound_bank(tmp_path, mode, at_least):
    command = [sys.executable, "-m", "tests.memory.crash_worker", mode, str(tmp_path / "bank"), "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    assert int(result.stdout) >= at_least
