"""Whether arrays on the host hold numbers, and neither NaN nor infinity."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def all_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; integers never are."""
    if array.dtype == ml_dtypes.bfloat16:
        # NumPy asks about these one by one. Without their sign, NaN and infinity are the largest.
        magnitudes = array.view(np.uint16) & 0x7FFF
        return int(magnitudes.max(initial=0)) < 0x7F80
    return bool(np.isfinite(array).all())
