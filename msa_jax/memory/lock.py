"""Locks on files, which the kernel gives back however their holder ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

from msa_jax import file_lock
from msa_jax.memory.parts import StoreError


class WriteLock:
    """Holds the lock file of a bank until `release`; the file says which process does."""

    def __init__(self, path: pathlib.Path):
        """Takes the lock.

        Raises:
            StoreError: if another writer holds it, or the file cannot be written.
        """
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written ({error.strerror}); open the bank for reading."
            ) from error
        try:
            file_lock.lock(self._handle, wait=False)
        except BlockingIOError:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise StoreError(
                f"{path.parent}: process {holder} has the bank open for writing; close it there, "
                "or open it for reading."
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets others write."""
        file_lock.unlock(self._handle)
        os.close(self._handle)


@contextlib.contextmanager
def waiting_lock(path: pathlib.Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a file, after whoever holds it now.

    Args:
        path: of the file, which is made if absent.
        on_wait: called if somebody else holds the lock.

    Raises:
        OSError: if the file cannot be written.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            file_lock.lock(handle, wait=False)
        except BlockingIOError:
            on_wait()
            file_lock.lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
