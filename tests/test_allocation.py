"""Freed memory is kept for the next image."""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from prep.allocation import one_image_at_a_time
from prep.images import PixelOptions, prepare


def page_faults(photograph: bytes, kept: bool) -> int:
    """Page faults an image, of thirty that follow a first."""
    if kept:
        one_image_at_a_time()
    counts = []
    for _ in range(31):
        prepare(photograph, PixelOptions())
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return (counts[-1] - counts[0]) // 30


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
def test_an_image_takes_the_memory_of_the_one_before() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), np.uint8)
    photograph = cv2.imencode(".jpg", cv2.blur(pixels, (5, 5)))[1].tobytes()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        before, after = (pool.submit(page_faults, photograph, kept).result() for kept in (False, True))
    assert after < 100 and after < before
