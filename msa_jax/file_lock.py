"""Locks of files, which a Unix kernel gives back however their holder ends."""

from __future__ import annotations

from msa_jax.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def lock(handle: int, wait: bool) -> None:
    """Locks an open file against all others that lock it.

    Args:
        handle: its descriptor.
        wait: until others have given the lock back.

    Raises:
        BlockingIOError: if another holds the lock and `wait` is false.
        ConfigError: where the system has no such locks.
    """
    if fcntl is None:
        raise ConfigError(
            "banks and backbones need the file locks of Linux or macOS; on Windows, run msa_jax in "
            "the Windows Subsystem for Linux."
        )
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(handle: int) -> None:
    """Lets others lock the file; a child process that was forked meanwhile holds nothing either."""
    fcntl.flock(handle, fcntl.LOCK_UN)
