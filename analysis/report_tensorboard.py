"""Curves by layer as scalars for TensorBoard: analysis/MEASURE with the layer's number as the step."""

from math import isfinite

from analysis.report_data import KNOWN, Entry

FOLDER = "analysis"  # below the run's tensorboard/


def write_curves(entry: Entry) -> None:
    """Write RUN/tensorboard/analysis anew; nothing for weights without a run, or without analyses."""
    folder = entry.run.folder
    curves = {measure: values for measure in KNOWN if any(map(isfinite, values := entry.by_layer(measure)))}
    if folder is None or not curves:
        return
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard" / FOLDER
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()  # else the curves of each report would lie upon each other
    with SummaryWriter(str(place)) as writer:
        for measure, values in curves.items():
            for step, value in enumerate(values):
                if isfinite(value):
                    writer.add_scalar(f"analysis/{measure}", value, step)
        writer.add_text("analysis/layers", "  \n".join(f"{i}: {name}" for i, name in enumerate(entry.layers)))
