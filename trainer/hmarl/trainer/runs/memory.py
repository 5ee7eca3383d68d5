"""What the C library does with memory that has been freed."""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have glibc keep the memory of what is freed for what is asked for next, for the rest of this process.

    An update frees tensors of some megabytes and asks for as many again, operation by operation. By itself glibc
    returns blocks of that size to the system, which has to clear every page of them when they are asked for anew.
    Where the C library is another one, nothing happens.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_MAX, 0)  # from the heap however large
        set_option(_M_TRIM_THRESHOLD, -1)  # which does not shrink
