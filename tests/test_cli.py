"""What the command-line programs share."""

import errno
import io
import os
import signal
import subprocess
import sys

import jax
import pytest
from absl import flags

from msa_jax import cli
from msa_jax.config import ConfigError
from tests.memory.banks import create


@pytest.fixture
def cache_dir():
    before = jax.config.jax_compilation_cache_dir
    yield lambda path: jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_in_the_users_cache(cache_dir, monkeypatch, tmp_path):
    cache_dir(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_compiled()
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/msa_jax/")


def test_a_place_that_was_chosen_stays(cache_dir, tmp_path):
    cache_dir(str(tmp_path / "chosen"))
    cli.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "chosen")


@pytest.mark.parametrize("home", [None, "/dev/null/nobody"])
def test_without_a_home_nothing_is_kept(cache_dir, monkeypatch, home):
    for name in ("MSA_JAX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    else:  # As where the user is unknown, too.
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
        with pytest.raises(ConfigError, match="no home directory .*; set MSA_JAX_CACHE"):
            cli.cache_directory()
    cache_dir(None)
    cli.keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("MSA_JAX_CACHE", "/somewhere")
    assert str(cli.cache_directory()) == "/somewhere"


def ends_with(main, monkeypatch):
    """The exit code of a program that does this."""
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as stop:
        cli.run(main, flags.FlagValues())
    return stop.value.code or 0


def raising(error):
    def main(_):
        raise error

    return main


def test_ctrl_c_is_130(monkeypatch, capsys):
    assert ends_with(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("a\x1b[31m\nb"), "error: a\\x1b[31m\\nb\n"),
        (PermissionError(13, "Permission denied", "x\r"), "error: x\\r: Permission denied.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device.\n"),
    ],
)
def test_what_a_user_can_mend_is_a_line_that_drives_no_terminal(monkeypatch, capsys, error, line):
    assert ends_with(raising(error), monkeypatch) == 2
    assert capsys.readouterr() == ("", line)


def test_a_broken_pipe_that_is_not_the_output_is_no_quiet_end(monkeypatch, capsys):
    error = BrokenPipeError(errno.EPIPE, "Broken pipe", "of a worker")
    assert ends_with(raising(error), monkeypatch) == 141
    assert capsys.readouterr() == ("", "error: of a worker: Broken pipe.\n")


def test_an_output_of_another_encoding_takes_any_text(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert ends_with(lambda _: print("é \udcff"), monkeypatch) == 0
    assert out.buffer.getvalue() == b"\\xe9 \\udcff\n"


@pytest.fixture(scope="module")
def a_bank(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "bank"
    create(path).close()
    return path


def shell(a_bank, redirect):
    """Runs a program in a shell; the exit code of the program, and its errors."""
    command = f"set -o pipefail; {sys.executable} -m msa_jax.bank --bank={a_bank} {redirect}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("redirect", "code", "error"),
    [
        ("| true", 141, ""),
        ("<&- >&-", 0, ""),
        (">&- 2>&-", 0, ""),
        pytest.param(
            *(">/dev/full", 2, "error: No space left on device.\n"),
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here"),
        ),
    ],
)
def test_closed_and_broken_streams(a_bank, redirect, code, error):
    assert shell(a_bank, redirect) == (code, error)


def test_ctrl_c_ends_a_program_that_waits_for_its_input(tmp_path):
    """A thread of the program may be blocked in a line that never comes."""
    waits = """
import sys
from absl import flags
from msa_jax import cli
from msa_jax.data.sources import open_source
from msa_jax.engine.ingest import _in_background

def main(_):
    documents = iter(open_source("-"))
    print("ready", flush=True)
    _in_background(lambda: next(documents)).result()

cli.run(main, flags.FlagValues())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert (process.wait(timeout=120), process.stderr.read()) == (130, "")
    process.communicate()
