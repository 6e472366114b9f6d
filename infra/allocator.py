"""The C library's allocator: let it keep large blocks that are freed, instead of giving them back to the kernel."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**30  # bytes; no activation of a batch is larger


def keep_freed_memory() -> None:
    """Keep what is freed for the next forward.

    By default glibc maps every block over 32 MB anew and unmaps it when freed. A network's activations are such blocks, and
    for each forward the kernel would clear their pages again: LightCNN-9 at batch 32 spends half of its time on that. What a
    process holds at its peak does not change. Other C libraries have no such setting, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
