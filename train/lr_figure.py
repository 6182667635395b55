"""The figures of a search for a learning rate, as PNG and SVG."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f6fb4", "#d1651a", "#8a8a8a"


def grid_figure(content: Mapping[str, Any]) -> Figure:
    """Loss (left) and target metric (right) by learning rate; dotted: the best of each; crosses: diverged."""
    tries, target = content["tries"], content["target_metric"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    rates = [each["lr"] for each in tries]
    for name, colour, style in (("val_loss", BLUE, "o-"), ("train_loss", GREY, ".--")):
        if any(math.isfinite(each[name]) for each in tries):
            left.plot(rates, [each[name] for each in tries], style, color=colour, label=name.replace("_", " "))
    lost = [each["lr"] for each in tries if each["diverged"]]
    if lost:
        left.plot(lost, [left.get_ylim()[1]] * len(lost), "x", color=GREY, label="diverged")
    left.set(xscale="log", xlabel="learning rate (--lr)", ylabel="loss")
    right = left.twinx()
    scores = [each["metrics"].get(target, math.nan) for each in tries]
    if any(math.isfinite(score) for score in scores):
        right.plot(rates, scores, "s-", color=ORANGE, label=target)
    right.set_ylabel(target, color=ORANGE)
    for name, colour in (("best_by_loss", BLUE), ("best_by_metric", ORANGE)):
        if content[name] is not None:
            left.axvline(content[name], color=colour, linewidth=1, linestyle=":")
    lines = [*left.get_lines(), *right.get_lines()]
    shown = [line for line in lines if not str(line.get_label()).startswith("_")]
    figure.legend(shown, [str(line.get_label()) for line in shown], loc="outside upper center", ncols=4, frameon=False)
    return figure


def range_figure(content: Mapping[str, Any]) -> Figure:
    """Loss by learning rate, plain and smoothed, with the two suggestions."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rates = [each["lr"] for each in content["steps"]]
    axes.plot(rates, [each["loss"] for each in content["steps"]], color=GREY, linewidth=0.8, label="loss of the step")
    smooth = [each["smooth_loss"] for each in content["steps"]]
    axes.plot(rates, smooth, color=BLUE, label="smoothed")
    for name, colour, label in (("steepest", ORANGE, "falls fastest"), ("tenth", GREY, "a tenth of the lowest's")):
        if content[name] is not None:
            axes.axvline(content[name], color=colour, linestyle=":", label=f"{label}: {content[name]:.2g}")
    if smooth:
        axes.set_ylim(min(smooth) * 0.9, max(smooth[0], min(smooth)) * 1.5)
    axes.set(xscale="log", xlabel="learning rate (--lr)", ylabel="training loss")
    axes.legend(frameon=False, fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write PATH.png and PATH.svg."""
    FigureCanvasAgg(figure)
    for suffix in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=120, metadata={"Date": None} if suffix == "svg" else None)
