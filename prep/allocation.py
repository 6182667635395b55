"""What a worker does with its processor and its memory: one thread, and freed memory kept for the next image.

glibc gives the top of its heap back to the kernel whenever an image is freed, and asks for it anew with the next: 2,200
page faults for a photograph of 1024 x 768, a third of a worker's processor time (benchmarks/README.md, Conversion).
"""

import ctypes
import functools

import cv2

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT, MAPPED = (
    256 << 20,
    32 << 20,
)  # bytes: free memory kept at most; blocks above this are mapped one by one (glibc's own maximum)


def one_image_at_a_time() -> None:
    """Make this process fit for one image after another. Where the C library is not glibc, only the thread counts."""
    cv2.setNumThreads(1)
    _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> bool:
    """Whether the C library took both bounds."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
