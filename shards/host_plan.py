"""Which part of a transform the compiled loops take over, and that part of drawn parameters as their jobs.

They end every transform: flips, jitter, grayscale and solarize before Normalize, and before these one crop and resize.
Flips and colours exchange places freely, since colours look at a level and at the mean of all. What stands before that
ending, and samples whose window reaches beyond the image, stay with the executor's operators.
"""

from collections.abc import Callable

import numpy as np

from shards import native
from shards.chain import Drawn, Transform
from shards.colours import JITTER_STEPS, ColorJitter, Grayscale, Solarize
from shards.operators import (
    CenterCrop,
    HorizontalFlip,
    Normalize,
    Operator,
    Params,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    VerticalFlip,
)

STEPS_OF: dict[type[Operator], int] = {
    HorizontalFlip: 0,
    VerticalFlip: 0,
    ColorJitter: len(JITTER_STEPS),
    Grayscale: 1,
    Solarize: 1,
}


def native_from(transform: Transform) -> int:
    """The number of the first operator that the loops take; that of Normalize where they take none before it."""
    kinds: list[type[Operator]] = [type(operator) for operator in transform.operators]
    at, left = kinds.index(Normalize), native.MOST_STEPS
    while at > 0 and kinds[at - 1] in STEPS_OF and left >= STEPS_OF[kinds[at - 1]]:
        left -= STEPS_OF[kinds[at - 1]]
        at -= 1
    if at > 0 and kinds[at - 1] in (RandomResizedCrop, Resize):
        return at - 1 if _bilinear(transform.operators[at - 1]) else at
    if at > 0 and kinds[at - 1] in (CenterCrop, RandomCrop):  # a crop of its own wants to know the image's size
        resized = at > 1 and kinds[at - 2] is Resize and _bilinear(transform.operators[at - 2])
        return at - 2 if resized else at - 1 if at == 1 else at
    return at


def _bilinear(operator: Operator) -> bool:
    return operator.interpolation == "bilinear"  # type: ignore[attr-defined]


def jobs_of(drawn: Drawn, first: int, size: tuple[int, int], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """JOB[b] for the operators from `first` on, and bool[b] whose job the loops can do: it lies within the image.

    size: of the output. sizes: int64[b, 2] of the images that the first of these operators gets, where there is none
    before it.
    """
    jobs = native.jobs(len(sizes), size)
    floats = any(isinstance(op, Resize) and not op.rounded for _, op, _ in drawn.steps[:first])
    fits = np.full(len(sizes), not floats)  # the loops take bytes
    for _, operator, params in drawn.steps[first:]:
        if isinstance(operator, CenterCrop | RandomCrop):
            fits &= _crop(jobs, params["window"], sizes, resized=isinstance(drawn.steps[first][1], Resize))
        elif (write := WRITE.get(type(operator))) is not None:
            write(jobs, operator, params)
    return jobs, fits


def _crop(jobs: np.ndarray, window: np.ndarray, sizes: np.ndarray, resized: bool) -> np.ndarray:
    """Part of what was resized, else of the stored image; whether it lies within."""
    if resized:
        sizes = np.stack([jobs["full_height"], jobs["full_width"]], axis=1)
    where = ("top", "left") if resized else ("cut_top", "cut_left")
    sides = ("height", "width") if resized else ("cut_height", "cut_width")
    for column, name in enumerate((*where, *sides)):
        jobs[name] = window[:, column]
    if not resized:
        for side in ("height", "width"):
            jobs[side] = jobs[f"full_{side}"] = jobs[f"cut_{side}"]
    return ((window[:, :2] >= 0) & (window[:, :2] + window[:, 2:] <= sizes)).all(axis=1)


def _resize(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    for axis, side in enumerate(("height", "width")):
        jobs[f"full_{side}"] = jobs[side] = params["size"][:, axis]


def _resize_alone(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    _resize(jobs, operator, params)
    jobs["unrounded"] = not operator.rounded  # type: ignore[attr-defined]


def _crop_and_resize(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    for column, name in enumerate(("cut_top", "cut_left", "cut_height", "cut_width")):
        jobs[name] = params["window"][:, column]
    _resize(jobs, operator, params)


def _flip(name: str) -> Callable[[np.ndarray, Operator, Params], None]:
    def write(jobs: np.ndarray, operator: Operator, params: Params) -> None:
        jobs[name] ^= params["active"]

    return write


def _add(jobs: np.ndarray, chosen: np.ndarray, kind: np.ndarray | int, factor: np.ndarray | float) -> None:
    """One more colour step of some of the jobs, bool[b]."""
    rows = np.flatnonzero(chosen)
    place = jobs["steps"][rows]
    jobs["kind"][rows, place] = kind[rows] if isinstance(kind, np.ndarray) else kind
    jobs["factor"][rows, place] = factor[rows] if isinstance(factor, np.ndarray) else factor
    jobs["steps"][rows] += 1


def _jitter(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    """Numbers of JITTER_STEPS are those of the loops; a hue is told in sixths of the circle, 0 to 6."""
    factors = np.stack([params[name] for name in JITTER_STEPS], axis=1)
    factors[:, 3] = 6.0 * (factors[:, 3] - np.floor(factors[:, 3]))
    used = np.array([getattr(operator, name) > 0 for name in JITTER_STEPS])
    for place in range(len(JITTER_STEPS)):
        kind = params["order"][:, place]
        _add(jobs, params["active"] & used[kind], kind, factors[np.arange(len(kind)), kind])


def _gray(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    _add(jobs, params["active"], native.STEP_KINDS.index("gray"), 0.0)


def _solarize(jobs: np.ndarray, operator: Operator, params: Params) -> None:
    _add(jobs, params["active"], native.STEP_KINDS.index("solarize"), operator.threshold)  # type: ignore[attr-defined]


WRITE: dict[type[Operator], Callable[[np.ndarray, Operator, Params], None]] = {
    RandomResizedCrop: _crop_and_resize,
    Resize: _resize_alone,
    HorizontalFlip: _flip("flip_x"),
    VerticalFlip: _flip("flip_y"),
    ColorJitter: _jitter,
    Grayscale: _gray,
    Solarize: _solarize,
}
