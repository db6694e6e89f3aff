"""What the command-line programs share: flags, standard streams, and errors that are one line."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import select
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from tqdm import tqdm

from msa_jax.checkpoint.backbones import cache_directory
from msa_jax.checkpoint.huggingface import CheckpointError
from msa_jax.config import ConfigError
from msa_jax.data.records import RecordError
from msa_jax.data.sources import DocumentSource
from msa_jax.memory.store import StoreError
from msa_jax.terminal import note

# As shells count the signals SIGINT and SIGPIPE.
_INTERRUPTED, _PIPE_CLOSED = 130, 141
# What the user of a program can mend.
MENDABLE: tuple[type[Exception], ...] = (ConfigError, RecordError, CheckpointError, StoreError)


def run(
    main: Callable[[Sequence[str]], None],
    own_flags: flags.FlagValues,
    flags_parser: Callable[[Sequence[str]], list[str]] | None = None,
    mendable: tuple[type[Exception], ...] = (),
) -> None:
    """Runs a program; what its user can mend is one line on stderr and exit code 2.

    Ctrl-C ends it with exit code 130, and a pipe that nobody reads any more with 141.

    Args:
        main: gets the program's name and the arguments that are no flags.
        own_flags: flags of this program, which others may have, too, with another meaning.
        flags_parser: takes the place of `parse_flags`.
        mendable: more errors that the user can mend.
    """
    _mend_streams()
    try:
        _run(main, own_flags, flags_parser or parse_flags, (*MENDABLE, *mendable))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError as error:
        if not _silence_broken_streams():
            print_error(error)  # It is another pipe than that of the output.
        sys.exit(_PIPE_CLOSED)


def print_error(error: Exception) -> None:
    """One line on stderr."""
    note(f"error: {describe(error)}")


def describe(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}{error.strerror}."
    return str(error)


def given(flag: flags.FlagHolder, what: str) -> str:
    """The value of a flag.

    Raises:
        ConfigError: if it has none.
    """
    if not flag.value:
        raise ConfigError(f"--{flag.name} is missing; name {what}.")
    return flag.value


def refuse_arguments(arguments: Sequence[str]) -> None:
    """For programs that take flags alone.

    Raises:
        ConfigError: if there is more than the program's name.
    """
    if len(arguments) > 1:
        raise ConfigError(f"{arguments[1]!r} is not a flag; write --name=value.")


def progress_of(bar: tqdm) -> Callable[[int, int], None]:
    """Shows what is done, and how much there is to do, on a bar."""

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


class EncodingBar:
    """Shows on a bar how much of a source is encoded; how much there is, is guessed from the rest.

    A context manager. `planned` and `encoded` are what `Ingestor.add` calls.
    """

    def __init__(self, source: DocumentSource, delay: float = 0.0):
        """`delay` seconds must pass before there is a bar."""
        self._source, self._planned = source, 0
        # In a log file, a line now and then; on a terminal, a living bar.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            desc="encode", unit="tok", unit_scale=True, mininterval=interval, delay=delay
        )

    def planned(self, tokens: int) -> None:
        """Takes note of tokens that were read."""
        self._planned += tokens
        fraction = self._source.fraction
        self._bar.total = self._planned / fraction if fraction else None

    def encoded(self, tokens: int) -> None:
        """Shows tokens that were encoded."""
        self._bar.update(tokens)

    def __enter__(self) -> EncodingBar:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if not failed:
            self._bar.total = self._bar.n
        self._bar.close()


def keep_compiled() -> None:
    """Lets the next start of a program find what this one compiles.

    In the cache of this package, apart for every machine, unless JAX was told another place
    (`JAX_COMPILATION_CACHE_DIR`).
    """
    if jax.config.jax_compilation_cache_dir is None:
        # Without a home, or one that can be written, nothing is kept.
        with contextlib.suppress(ConfigError, OSError):
            folder = cache_directory() / platform.node()
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses all flags; returns the program's name and the arguments that are no flags.

    Raises:
        ConfigError: for a flag that there is not, or a value that it cannot have.
    """
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _run(
    main: Callable[[Sequence[str]], None],
    own_flags: flags.FlagValues,
    flags_parser: Callable[[Sequence[str]], list[str]],
    mendable: tuple[type[Exception], ...],
) -> None:
    if own_flags is not flags.FLAGS:
        flags.FLAGS.append_flag_values(own_flags)
        own_flags.mark_as_parsed()  # It will be, with the others.
    try:
        try:
            app.run(_quiet(main), flags_parser=flags_parser)
        finally:
            sys.stdout.flush()  # What fails does so here, not when Python ends.
    except BrokenPipeError:
        raise
    except (*mendable, OSError) as error:
        print_error(error)
        sys.exit(2)
    finally:
        if own_flags is not flags.FLAGS:
            flags.FLAGS.remove_flag_values(own_flags)
            own_flags.unparse_flags()


def _mend_streams() -> None:
    """Makes standard streams fit to write any text; those that are closed take and give nothing."""
    # Else the next file that is opened would be taken for what is written to the terminal.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _silence_broken_streams() -> bool:
    """Whether nobody reads the output any more; then nothing more is written there."""
    broken = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        with contextlib.suppress(io.UnsupportedOperation):  # A stream in memory does not break.
            poll.register(stream.fileno(), 0)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            broken = True
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
    return broken


def _quiet(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    def quiet_main(arguments: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # The checkpoint library has much to say.
        main(arguments)

    return quiet_main
