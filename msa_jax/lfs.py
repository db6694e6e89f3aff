"""Git LFS leaves a few lines of text where a large file has not been fetched yet."""

from __future__ import annotations

import os

POINTER = b"version https://git-lfs"
ADVICE = "it is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"


def advice(path: str | os.PathLike) -> str | None:
    """What is wrong with a file that is a pointer, and what to do; None for any other."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(POINTER)) == POINTER
    except OSError:
        return None
    return ADVICE if is_pointer else None
