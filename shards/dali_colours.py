"""Colours in DALI's operators: jitter, grayscale, and the steps that the policies share.

On a CPU nearly every operator costs the same for each value it makes. What is dearer decides how the steps are written
(docs/decisions/0003): a conversion from floats to integers costs six of the others, a matrix over channels twenty.
"""

from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from shards.colours import JITTER_STEPS, ColorJitter, Grayscale
from shards.operators import Operator, Params

Feeds = dict[str, Any]
LUMA = (0.2989, 0.587, 0.114)
TRUNCATING = 0.4999  # taken off a level before DALI rounds it
FINENESS = 16  # parts of a level in which bytes are blended
BYTES = 255.0
FLOAT, INT32, INT64 = types.DALIDataType.FLOAT, types.DALIDataType.INT32, types.DALIDataType.INT64
UINT8, INT16 = types.DALIDataType.UINT8, types.DALIDataType.INT16
COMMON = ("brightness", "contrast", "saturation")
# The shortest word that holds all orders of three: each step stands under as few conditions as can be.
WORD = ("brightness", "contrast", "saturation", "brightness", "contrast", "brightness", "saturation")


def jitter_columns(operator: ColorJitter, params: Params) -> Params:
    """Whether each step is taken at each place, before the hue's shift (places 0..6) and after it (7..13); the factors.

    The shift itself as planes to take and places to put them (`_hue`).
    """
    order = params["order"]
    code = order @ 4 ** np.arange(len(JITTER_STEPS))
    fed: Params = {"active": params["active"]}
    taken = params["active"][:, None] & _taken(operator.hue > 0)[code]
    for place, name in _places(operator):
        fed[f"{place}-{name}"] = taken[:, place]
    fed |= {name: params[name] for name in COMMON if getattr(operator, name) > 0}
    return fed | _shift_columns(params["hue"]) if operator.hue > 0 else fed


def _places(operator: ColorJitter) -> list[tuple[int, str]]:
    """The steps in use, each as often as some order may want it; without a hue the first half holds all orders."""
    words = (*WORD, *WORD) if operator.hue > 0 else WORD
    return [(place, name) for place, name in enumerate(words) if getattr(operator, name) > 0]


@cache
def _taken(shifted: bool) -> np.ndarray:
    """bool[256, 14]: by an order's code (four digits of base 4), the places where its steps are taken.

    shifted: steps behind the hue's turn stand in the second half.
    """
    table = np.zeros((4 ** len(JITTER_STEPS), 2 * len(WORD)), bool)
    for order in permutations(range(len(JITTER_STEPS))):
        row, at = table[np.array(order) @ 4 ** np.arange(len(order))], 0
        for number in order:
            if JITTER_STEPS[number] == "hue":
                at = len(WORD) if shifted else at
                continue
            at = next(n for n in range(at, len(row)) if WORD[n % len(WORD)] == JITTER_STEPS[number])
            row[at], at = True, at + 1
    return table


def _shift_columns(turns: np.ndarray) -> Params:
    """For `_hue`: planes to take, where to put what is made of each (256 ** channel), and the parts of the chroma."""
    whole = np.floor(6.0 * turns)
    part, sixths = 6.0 * turns - whole, whole.astype(np.int64) % 6
    odd, turned, n = (sixths % 2 == 1)[:, None], (sixths // 2)[:, None], np.arange(3)
    parts = np.stack([part, 1.0 - part], axis=1)
    return {
        "planes-hue": np.where(odd, n[::-1], n),
        "places-hue": 256 ** np.where(odd, (turned - n) % 3, (turned + n) % 3),
        "parts-hue": np.where(odd, parts[:, ::-1], parts),
    }


def jitter(operator: ColorJitter, image: Any, feeds: Feeds) -> Any:
    """One condition around all steps: the others of the batch pass by them at once."""
    if feeds["active"]:
        image = _jittered(operator, image, feeds)
    return image


def _jittered(operator: ColorJitter, image: Any, feeds: Feeds) -> Any:
    places = [(place, name) for place, name in _places(operator) if f"{place}-{name}" in feeds]
    for place, name in places:
        if place < len(WORD):
            image = step(STEPS[name], image, feeds[f"{place}-{name}"], feeds[name], feeds)
    if "planes-hue" in feeds:
        image = _hue(image, feeds)
    for place, name in places:
        if place >= len(WORD):
            image = step(STEPS[name], image, feeds[f"{place}-{name}"], feeds[name], feeds)
    return image


def step(apply: Callable[[Any, Any, Feeds], Any], image: Any, taken: Any, factor: Any, depth: Feeds) -> Any:
    """One step on the samples that take it."""
    if taken:
        image = apply(image, factor, depth)
    return image


def stored(levels: Any, depth: Feeds) -> Any:
    """Clipped, and truncated as torchvision does (DALI rounds); 16 bits round."""
    if depth["largest"] == BYTES:
        levels = levels - TRUNCATING
    return fn.reinterpret(fn.cast(levels, dtype=depth["kind"]), layout="HWC")


def luma(levels: Any, depth: Feeds) -> Any:
    """Grey levels [h, w, 1], truncated where they are bytes."""
    gray = LUMA[0] * levels[:, :, 0:1] + LUMA[1] * levels[:, :, 1:2] + LUMA[2] * levels[:, :, 2:3]
    return math.floor(gray) if depth["largest"] == BYTES else gray


def _gray_of_bytes(image: Any) -> Any:
    """Grey bytes [h, w, 1], rounded: half a level above torchvision's on the average."""
    return _converted(image, types.DALIImageType.RGB, types.DALIImageType.GRAY)


def _on_three(gray: Any) -> Any:
    return _converted(gray, types.DALIImageType.GRAY, types.DALIImageType.RGB)


def _converted(image: Any, given: Any, wanted: Any) -> Any:
    return fn.color_space_conversion(image, image_type=given, output_type=wanted)


def gray(operator: Grayscale, image: Any, feeds: Feeds) -> Any:
    """Luma on all channels, of the samples drawn."""
    if feeds["channels"] == 3:
        image = step(_without_colour, image, feeds["active"], 0.0, feeds)
    return image


def _without_colour(image: Any, factor: float, feeds: Feeds) -> Any:
    if feeds["largest"] != BYTES:
        return saturation(image, factor, feeds)
    made = fn.coord_transform(image, M=[*LUMA], T=[-TRUNCATING], dtype=UINT8)
    return _on_three(fn.reinterpret(made, layout="HWC"))


def brightness(image: Any, factor: Any, depth: Feeds) -> Any:
    """Levels times the factor."""
    if depth["largest"] == BYTES:
        return fn.brightness(image, brightness=factor, brightness_shift=-TRUNCATING / BYTES)
    return stored(fn.cast(image, dtype=FLOAT) * factor, depth)


def contrast(image: Any, factor: Any, depth: Feeds) -> Any:
    """Towards the mean of the grey image; rounding raises that of bytes by half a level."""
    if depth["largest"] == BYTES:
        one = depth["channels"] == 1
        middle = fn.reductions.mean(image if one else _gray_of_bytes(image)) - (0.0 if one else 0.5)
        return _blended(image, factor, fn.cast(FINENESS * (1.0 - factor) * middle, dtype=INT32))
    levels = fn.cast(image, dtype=FLOAT)
    gray_levels = levels if depth["channels"] == 1 else luma(levels, depth)
    return stored(levels * factor + (1.0 - factor) * fn.reductions.mean(gray_levels), depth)


def saturation(image: Any, factor: Any, depth: Feeds) -> Any:
    """Towards the grey image; one channel stays."""
    if depth["channels"] == 1:
        return image
    if depth["largest"] == BYTES:
        return _blended(image, factor, _parts(_on_three(_gray_of_bytes(image)), 1.0 - factor, -0.5 * (1.0 - factor)))
    levels = fn.cast(image, dtype=FLOAT)
    return stored(levels * factor + (1.0 - factor) * luma(levels, depth), depth)


def _parts(image: Any, factor: Any, more: Any) -> Any:
    """Bytes times a factor, and some levels more, in parts of a level: int32."""
    shift = more * (FINENESS / float(2**31 - 1))  # DALI counts it in largest values of what it makes
    return fn.brightness(image, brightness=factor * float(FINENESS), brightness_shift=shift, dtype=INT32)


LOWEST, HIGHEST = -256, 768  # levels between factors of 0 and 2; beyond them a blend is clipped as well


def _blended(image: Any, factor: Any, other: Any) -> Any:
    """Bytes times a factor, and `other` in parts of a level, clipped and truncated: torchvision's blend.

    A table does both at once: by conversion or division it costs five times as much.
    """
    parts = _parts(image, factor, -float(LOWEST)) + other
    levels = (np.arange(FINENESS * (HIGHEST - LOWEST)) // FINENESS + LOWEST).clip(0, 255)
    keys: Any = list(range(len(levels)))
    looked = fn.lookup_table(parts, keys=keys, values=levels.astype(float).tolist(), dtype=UINT8, default_value=255.0)
    return fn.reinterpret(looked, layout="HWC")


def _hue(image: Any, feeds: Feeds) -> Any:
    """A shift in HSV, written out: DALI's own hue turns the YIQ plane, which is another thing.

    Over the hue, a channel is a trapezoid between the least m and the most M of the pixel. Let a and b be its values at
    the whole sixths of a turn before and after the shift: channels, or their complements m + M - x. At a part f of the
    way, with C = M - m, it is a + b - m - f C where a > b and a + b - M + f C elsewhere, within m..M, since it bends
    nowhere but where it meets m or M. In channels: x - y + M - f C where the third is the least, x - y + M - (1 - f) C
    elsewhere; an odd number of sixths exchanges the two. No division, no floor; integers but for f C.
    """
    exact = feeds["largest"] != BYTES
    wide = FLOAT if exact else INT16
    planes = fn.transpose(image, perm=[2, 0, 1], transpose_layout=False, output_layout="HWC")
    order, parts = feeds["planes-hue"], feeds["parts-hue"]
    places = _sixteen_bits_apart(feeds["places-hue"]) if exact else feeds["places-hue"]
    x = [fn.slice(planes, start=order[n : n + 1], shape=[1], axes=[0]) for n in range(3)]
    most, least = math.max(math.max(x[0], x[1]), x[2]), math.min(math.min(x[0], x[1]), x[2])
    chroma = most - least
    if exact:
        over, under = (fn.cast(chroma, dtype=FLOAT) * parts[n] for n in range(2))
    else:
        over, under = (fn.brightness(chroma, brightness=parts[n], dtype=INT16) for n in range(2))
    start, change = most - under, under - over
    levels, packed = [fn.cast(plane, dtype=wide) for plane in x], None
    for n in range(3):
        moved = (x[(n + 2) % 3] == least) * change + start + (levels[n] - levels[(n + 1) % 3])
        channel = math.max(math.min(moved, most), least)
        placed = (fn.cast(channel, dtype=INT64) if exact else channel) * places[n]
        packed = placed if packed is None else packed + placed
    return _unpacked(packed, feeds)


def _sixteen_bits_apart(places: Any) -> Any:
    """256 ** n as 65536 ** n."""
    wide = fn.cast(places, dtype=INT64)
    return wide * wide


def _unpacked(packed: Any, depth: Feeds) -> Any:
    """[1, h, w] of three channels in a number each -> [h, w, 3]: half of what `fn.cat` or a transposition costs."""
    flat = fn.reinterpret(fn.reshape(packed, src_dims=[1, 2, 0]), dtype=depth["kind"], layout="HWC")
    return flat[:, :, 0:3]


STEPS: dict[str, Callable[[Any, Any, Feeds], Any]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
}
BUILD: dict[type[Operator], Callable[[Any, Any, Feeds], Any]] = {ColorJitter: jitter, Grayscale: gray}
