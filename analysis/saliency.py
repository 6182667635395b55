"""Where did the model look, when it was right and when it was wrong? A sheet of cases, and the maps behind it.

    python analysis/saliency.py runs/ddsm --cases 4

Grad-CAM of the predicted class (Selvaraju et al., ICCV 2017) for convolutional nets and Swin, attention rollout (Abnar
and Zuidema, ACL 2020) for ViTs. Cases: the right and the wrong ones that the model was surest of. A map says where the
evidence lay, not that it was good evidence; rollout does not depend on the class. Writes analysis/saliency.json and
saliency.svg, which holds the images as the model saw them. Single-label sets.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import torch

from analysis.chart_parts import svg_root
from analysis.chart_style import standalone
from analysis.console import announce, table
from analysis.flags import parser
from analysis.results import write_result
from analysis.saliency_maps import attention_map, grad_cam, last_map, way_of
from analysis.session import Session
from shards.command_line import positive

CAPTIONS = {
    "grad-cam": "Grad-CAM of the predicted class (Selvaraju et al., 2017) at the last spatial map",
    "rollout": "attention rollout (Abnar and Zuidema, 2020), which does not depend on the class",
}
SIDE = 112  # pixels of a tile


def main(args: argparse.Namespace) -> None:
    """Predict, choose cases, map them, write, tell.

    Raises:
        ValueError: a multi-label set.
    """
    session = Session(args)
    if session.shards.task != "single-label":
        raise ValueError(f"{session.shards.manifest.name} is a multi-label set: there is no one predicted class to map")
    request = session.request("end", cases=args.cases)
    if session.answered("saliency", request):
        return
    cases, pictures = find_cases(session, args.cases)
    way = way_of(session.model)
    maps, layer = maps_of(session, way, cases, pictures)
    for case, found in zip(cases, maps, strict=True):
        case["map"] = found
    values = {"about": CAPTIONS[way], "way": way, "layer": layer, "cases": cases}
    path = write_result(session.out, "saliency", request, values, standalone(sheet(values, shown(session, pictures))))
    announce(args, path, text(values))


def find_cases(session: Session, count: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The surest right and the surest wrong predictions of the split, and their images float32[cases, c, h, w].

    Raises:
        ValueError: no valid image came.
    """
    model, split = session.holding("end"), session.split()
    key_of = {int(one): split.key(i) for i, one in enumerate(split.sample_ids())}
    kept: dict[bool, list[tuple[float, dict[str, Any], torch.Tensor]]] = {True: [], False: []}
    with torch.inference_mode():
        for batch, keep in session.batches(split, "predicts"):
            with session.autocast():
                probabilities = model(batch.images.to(session.device)).float().softmax(1).cpu()
            for row in np.flatnonzero(keep).tolist():
                sure, predicted = probabilities[row].max(0)
                right = int(predicted) == int(batch.labels[row])
                case = {
                    "key": key_of[int(batch.sample_ids[row].numpy().view(np.uint64))],
                    "true": session.shards.classes[int(batch.labels[row])],
                    "predicted": session.shards.classes[int(predicted)],
                    "probability": float(sure),
                    "right": right,
                    "class": int(predicted),
                }
                kept[right].append((float(sure), case, batch.images[row].cpu().clone()))
            kept = {right: sorted(found, key=lambda one: -one[0])[:count] for right, found in kept.items()}
    chosen = [*kept[True], *kept[False]]
    if not chosen:
        raise ValueError("no valid image came out of the loader: is the split empty, or every image damaged?")
    return [case for _, case, _ in chosen], torch.stack([image for _, _, image in chosen])


def maps_of(
    session: Session, way: str, cases: Sequence[Mapping[str, Any]], images: torch.Tensor
) -> tuple[np.ndarray, str | None]:
    """float64[cases, h, w] and the layer they were taken at."""
    model, images = session.holding("end"), images.to(session.device)
    if way == "rollout":
        return attention_map(model, images).cpu().numpy(), None
    layer, tap = last_map(model, session.taps, images)
    classes = torch.tensor([case["class"] for case in cases], device=session.device)
    return grad_cam(model, tap, images, classes).double().cpu().numpy(), layer


def shown(session: Session, images: torch.Tensor) -> np.ndarray:
    """uint8[cases, h, w, 3]: the images without the normalisation."""
    info, manifest = session.run.info, session.shards.manifest
    mean, std = (
        np.array(of, np.float32).reshape(-1, 1, 1) for of in (info.mean or manifest.mean, info.std or manifest.std)
    )
    pixels = np.clip((images.numpy() * std + mean) * 255, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def overlay(image: np.ndarray, found: np.ndarray) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: the image in grey under its map, which is scaled to its own maximum."""
    grey = cv2.cvtColor(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    top = float(found.max())
    scaled = cv2.resize(
        (found / top if top > 0 else found).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
    )
    share = np.clip(scaled, 0, 1)
    colours = cv2.applyColorMap((share * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[..., ::-1]
    weight = (0.65 * share)[..., None]
    return (grey[..., None] * (1 - weight) + colours * weight).astype(np.uint8)


def sheet(values: Mapping[str, Any], images: np.ndarray) -> str:
    """Rows of right and of wrong cases, each as seen and with its map.

    `images` uint8[cases, h, w, 3].
    """
    cases = values["cases"]
    parts, y = [f'<text class="title" x="8" y="18">{escape(values["about"])}</text>'], 30
    columns = max((sum(case["right"] == side for case in cases) for side in (True, False)), default=1)
    for right in (True, False):
        chosen = [i for i, case in enumerate(cases) if case["right"] == right]
        if not chosen:
            continue
        parts.append(f'<text x="8" y="{y + 14}">{"Right" if right else "Wrong"}, surest first</text>')
        for column, i in enumerate(chosen):
            parts.append(_tile(cases[i], images[i], np.array(cases[i]["map"]), 8 + column * (SIDE + 8), y + 22))
        y += 2 * SIDE + 70
    return svg_root(16 + columns * (SIDE + 8), y + 4, "cases with their maps", "".join(parts))


def _tile(case: Mapping[str, Any], image: np.ndarray, found: np.ndarray, x: int, y: int) -> str:
    seen = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    strip = jpeg(np.concatenate([seen, overlay(image, found)]))
    told = f"{case['key']}: {case['predicted']} ({case['probability']:.2f}), true {case['true']}"
    lines = [f"{case['predicted']} {case['probability']:.2f}", "" if case["right"] else f"true: {case['true']}"]
    captions = "".join(
        f'<text class="tiny" x="{x}" y="{y + 2 * SIDE + 12 + 11 * i}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<image x="{x}" y="{y}" width="{SIDE}" height="{2 * SIDE}" href="{strip}"><title>{escape(told)}</title>'
        f"</image>{captions}"
    )


def jpeg(image: np.ndarray, quality: int = 82) -> str:
    """An RGB image as a data: link.

    `image` uint8[h, w, 3]; `quality` is libjpeg's, 0..100.
    """
    done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def text(values: Mapping[str, Any]) -> list[str]:
    """The cases for the console."""
    rows = [["key", "predicted", "probability", "true"]]
    rows += [[c["key"], c["predicted"], f"{c['probability']:.3f}", c["true"]] for c in values["cases"]]
    return table(rows)


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("banks", "seed"))
    made.add_argument("--cases", type=positive, default=8, help="right ones and wrong ones, each at most")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
