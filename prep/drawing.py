"""Pictures for phantoms: breast-like and fundus-like textures, and lesions of two shapes. Numpy and OpenCV, no state.

Every function takes its own generator, so an image is a pure function of (seed, number of the image). Background
texture, brightness and size are drawn without looking at the class; only the lesions know it.
"""

from typing import Literal

import cv2
import numpy as np

Shape = Literal["round", "spiculated", "dot"]
OCCULT = 0.15  # share of pictures whose lesions hardly show, as in dense tissue: keeps a perfect score out of reach
COARSE = 4  # textures are smooth: drawn at a quarter of the size and enlarged, 16 x less work


def texture(rng: np.random.Generator, height: int, width: int, octaves: int = 5) -> np.ndarray:
    """Cloudy noise with a spectrum of about 1/f: float32[height, width], mean about 0, deviation about 1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 4 << octave
        grid = rng.standard_normal((max(cells * height // width, 2), cells), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return total / (total.std() + 1e-6)


def grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Fine film grain, from a tile of 256 x 256 repeated at a random offset: float32[height, width], deviation 1."""
    tile = np.roll(rng.standard_normal((256, 256), dtype=np.float32), rng.integers(0, 256, 2), (0, 1))
    return np.tile(tile, (height // 256 + 1, width // 256 + 1))[:height, :width]


def lesion(rng: np.random.Generator, radius: float, shape: Shape) -> np.ndarray:
    """One lesion, 1 at its heart, 0 outside: float32[side, side], side about 5 radii.

    round: a smooth oval with a soft edge. spiculated: a small core with straight spikes to twice the radius. dot: a
    round spot without a plateau.
    """
    reach = int(np.ceil(radius * 2.5))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    distance, angle = np.hypot(x, y) / radius, np.arctan2(y, x)
    if shape == "dot":
        return np.exp(-2 * distance**2).astype(np.float32)
    if shape == "round":
        oval = 1 + rng.uniform(0.05, 0.2) * np.cos(2 * (angle - rng.uniform(0, np.pi)))
        return np.clip((oval - distance) / 0.25 + 0.5, 0, 1).astype(np.float32)
    core = np.clip((0.6 - distance) / 0.2 + 0.5, 0, 1)
    count = int(rng.integers(8, 13))
    # Each pixel looks at the spike of its own sector, which is a little off the sector's middle.
    sector = 2 * np.pi / count
    start = rng.uniform(0, sector)
    number = (((angle - start) % (2 * np.pi)) / sector).astype(np.intp) % count
    middles = (start + sector * (np.arange(count) + rng.uniform(0.3, 0.7, count))).astype(np.float32)
    lengths = rng.uniform(1.5, 2.2, count).astype(np.float32)
    off = angle - middles[number]
    along, across = distance * np.cos(off), distance * np.abs(np.sin(off))
    taper = np.clip(1 - along / lengths[number], 0, 1) * (along > 0)
    spikes = np.clip(1.2 - across / (0.16 * (0.4 + taper)), 0, 1) * np.minimum(2 * taper, 1)
    return np.maximum(core, spikes).astype(np.float32)


def paste(canvas: np.ndarray, patch: np.ndarray, centre: tuple[float, float], strength: float) -> None:
    """Add strength * patch to canvas float32[h, w] around centre (row, column), cut off at the border."""
    top, left = int(centre[0]) - patch.shape[0] // 2, int(centre[1]) - patch.shape[1] // 2
    bottom, right = min(top + patch.shape[0], canvas.shape[0]), min(left + patch.shape[1], canvas.shape[1])
    if bottom <= max(top, 0) or right <= max(left, 0):
        return
    inside = patch[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    canvas[max(top, 0) : bottom, max(left, 0) : right] += strength * inside


def places(rng: np.random.Generator, allowed: np.ndarray, count: int, apart: float) -> list[tuple[float, float]]:
    """Up to `count` places (row, column) where allowed bool[h, w] holds, at least `apart` pixels from each other."""
    candidates = np.flatnonzero(allowed)
    chosen: list[tuple[float, float]] = []
    for flat in rng.choice(candidates, 40 * count) if candidates.size and count else []:
        row, column = divmod(int(flat), allowed.shape[1])
        if all(np.hypot(row - r, column - c) >= apart for r, c in chosen):
            chosen.append((row, column))
        if len(chosen) == count:
            break
    return chosen


def strands(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Curved bright lines such as ducts and vessels, distractors of every class: float32[height, width] in 0..1."""
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(count):
        steps = np.cumsum(rng.normal(0, 0.12, 24)) + rng.uniform(0, 2 * np.pi)
        stride = max(height, width) / 40
        path = rng.uniform((0, 0), (width, height)) + stride * np.cumsum(np.c_[np.cos(steps), np.sin(steps)], 0)
        cv2.polylines(canvas, [path.astype(np.int32)], False, int(rng.integers(100, 255)), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.8).astype(np.float32) / 255


def enlarge(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement of float32[h, w] to [height, width]."""
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def breast(
    rng: np.random.Generator, height: int, width: int, count: int, shape: Shape, *, right: bool, brightness: float
) -> np.ndarray:
    """A breast-like picture: uint8[height, width]; `brightness` is its mean on the 0..1 scale, whatever it holds."""
    low_h, low_w = height // COARSE, width // COARSE
    row, column = np.mgrid[0:low_h, 0:low_w].astype(np.float32)
    centre, tall, wide = (
        low_h * rng.uniform(0.45, 0.55),
        low_h * rng.uniform(0.40, 0.48),
        low_w * rng.uniform(0.7, 0.92),
    )
    inside = 1 - (column / wide) ** 2 - ((row - centre) / tall) ** 2
    body = np.sqrt(np.clip(inside * 3, 0, 1))
    glandular = 0.55 + 0.10 * texture(rng, low_h, low_w) + 0.12 * strands(rng, low_h, low_w, int(rng.integers(6, 12)))
    image = enlarge(body * glandular, height, width)
    radius = width * rng.uniform(0.026, 0.038)  # 13 to 19 pixels across at a short side of 256
    spots = np.zeros_like(image)
    faint = 0.1 if rng.random() < OCCULT else 1.0
    shadows = int(rng.integers(0, 3))  # soft, in every class, so that "anything bright" is no rule
    for number, (r, c) in enumerate(places(rng, inside > 0.3, count + shadows, 5 * radius / COARSE)):
        kind: Shape = shape if number < count else "dot"
        strength = faint * rng.uniform(0.2, 0.34) if number < count else rng.uniform(0.1, 0.25)
        paste(spots, lesion(rng, radius * rng.uniform(0.85, 1.15), kind), (r * COARSE, c * COARSE), strength)
    mask = enlarge(body, height, width)
    image = image + spots * mask + 0.015 * grain(rng, height, width) * mask
    image = 255 * np.clip(image * (brightness / image.mean()), 0, 1) + rng.uniform(2, 8)
    picture = np.clip(image, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture[:, ::-1]) if right else picture


def fundus(
    rng: np.random.Generator, height: int, width: int, counts: tuple[int, int], *, brightness: float
) -> np.ndarray:
    """A fundus-like picture: uint8[height, width, 3], with (dark dots, bright exudates); brightness: its mean."""
    low_h, low_w = height // COARSE, width // COARSE
    row, column = np.mgrid[0:low_h, 0:low_w].astype(np.float32)
    radius = 0.49 * min(low_h, low_w) * rng.uniform(0.95, 1.0)
    distance = np.hypot(row - low_h / 2, column - low_w / 2) / radius
    disc = np.clip((1 - distance) * 20, 0, 1)
    side = rng.choice([-1, 1])
    nerve = np.exp(
        -4 * ((row - low_h / 2) ** 2 + (column - low_w / 2 - side * 0.55 * radius) ** 2) / (0.2 * radius) ** 2
    )
    tissue = 0.45 + 0.05 * texture(rng, low_h, low_w, 4) - 0.1 * distance + 0.35 * nerve
    tissue -= 0.18 * strands(rng, low_h, low_w, int(rng.integers(8, 14)))
    green = enlarge(tissue, height, width)
    unit = min(height, width)
    spots = np.zeros_like(green)
    centres = places(rng, (distance < 0.85) & (nerve < 0.2), sum(counts), 0.05 * unit / COARSE)
    for number, (r, c) in enumerate(centres):
        dark = number < counts[0]
        patch = lesion(rng, unit * rng.uniform(0.016, 0.024), "round" if dark else "spiculated")
        paste(spots, patch, (r * COARSE, c * COARSE), -0.28 if dark else 0.4)
    mask = enlarge(disc, height, width)
    # The grain differs from film to film, or the size of the file would tell how many lesions it shows.
    green = (green + spots + 0.003 * 10 ** rng.uniform(0, 1.2) * grain(rng, height, width)) * mask
    picture = np.dstack([green * rng.uniform(1.6, 1.9) + 0.08 * mask, green, green * rng.uniform(0.25, 0.4)])
    for _ in range(2):  # the second time makes up for what clipping took
        picture = np.clip(picture * (brightness / picture.mean()), 0, 1)
    return (255 * picture).astype(np.uint8)


def tissue(rng: np.random.Generator, side: int, *, tumour: bool, brightness: float) -> np.ndarray:
    """A stained-tissue-like patch: uint8[side, side, 3]; a tumour's nuclei are large in the middle third.

    `brightness` is the mean of the patch on the 0..1 scale, whatever it holds.
    """
    stroma = texture(rng, side, side, 3)
    nuclei = np.zeros((side, side), np.float32)
    unit = side / 96
    for row, column in places(rng, np.ones((side, side), bool), int(rng.integers(22, 34)), 9 * unit):
        middle = max(abs(row - side / 2), abs(column - side / 2)) < side / 6
        radius = rng.uniform(5, 7.5) if tumour and middle else rng.uniform(2.2, 3.4)
        paste(nuclei, lesion(rng, radius * unit, "round"), (row, column), rng.uniform(0.7, 1.0))
    nuclei = np.clip(nuclei, 0, 1)[..., None]
    pink, purple = np.array([0.86, 0.62, 0.76]), np.array([0.36, 0.22, 0.52])
    picture = (1 - nuclei) * (pink + 0.05 * stroma[..., None]) + nuclei * purple
    picture += 0.02 * grain(rng, side, side)[..., None]
    for _ in range(2):  # the second time makes up for what clipping took
        picture = np.clip(picture * (brightness / picture.mean()), 0, 1)
    return (255 * picture).astype(np.uint8)


def slide(rng: np.random.Generator, side: int, outline: list[list[float]]) -> np.ndarray:
    """A stained section on white glass: uint8[side, side, 3]; nuclei are large inside `outline` (x, y in pixels)."""
    low = side // COARSE
    row, column = np.mgrid[0:low, 0:low].astype(np.float32)
    wave = 0.06 * texture(rng, low, low, 3)
    section = enlarge(np.clip(10 * (0.42 + wave - np.hypot(row - low / 2, column - low / 2) / low), 0, 1), side, side)
    tumour = np.zeros((side, side), np.uint8)
    if outline:
        cv2.fillPoly(tumour, [np.rint(outline).astype(np.int32)], 1)
    nuclei = np.zeros((side, side), np.float32)
    for y, x in rng.uniform(0, side, (side * side // 900, 2)):
        radius = rng.uniform(13, 18) if tumour[int(y), int(x)] else rng.uniform(6, 9)
        cv2.circle(nuclei, (int(x), int(y)), int(radius), float(rng.uniform(0.6, 1)), -1, cv2.LINE_AA)
    amount = (cv2.GaussianBlur(nuclei, (0, 0), 1.5) * section)[..., None]
    pink, purple = np.array([0.88, 0.62, 0.78], np.float32), np.array([0.38, 0.24, 0.54], np.float32)
    stroma = pink + 0.04 * enlarge(texture(rng, low, low, 4), side, side)[..., None]
    picture = (1 - section[..., None]) * 0.96 + section[..., None] * ((1 - amount) * stroma + amount * purple)
    return (255 * np.clip(picture + 0.01 * grain(rng, side, side)[..., None], 0, 1)).astype(np.uint8)
