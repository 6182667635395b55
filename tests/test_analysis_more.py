"""The further scripts over runs: maps of embeddings, dimension, attention, saliency, FID, trajectories."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_runs
import numpy as np
import pytest
import torch
from made_runs import FAMILIES, SMALL, make_run

from analysis import attention, dimension, embeddings, fid, saliency, trajectory
from analysis.frechet import frechet_distance
from analysis.session import Session
from analysis.twonn import two_nn
from shards.sets import write_set
from shards.writer import Sample
from train.models import create
from train.rundir import read_weights

FEW = {"embeddings": ("--neighbours", "5", "--methods", "pca"), "saliency": ("--cases", "3")}


def arguments(run: Path, script: str, *flags: str, source: Path | None = None) -> Namespace:
    more = ("--source", str(source)) if source is not None else ()
    return made_runs.arguments(run, *FEW.get(script, ()), *flags, *more, script=script)


def result(run: Path, name: str) -> dict:
    path = run / "analysis" / f"{name}.json"
    ElementTree.parse(path.with_suffix(".svg"))
    return json.loads(path.read_text())


def test_embeddings_keep_every_image_and_know_its_error(run, capsys):
    embeddings.main(arguments(run, "embeddings"))
    found = result(run, "embeddings")
    assert len(found["label"]) == len(found["maps"]["pca"]["points"]) == 79
    assert found["split"].count("test") == 19
    session = Session(arguments(run, "embeddings"))
    model, bank = session.holding("end"), session.bank("end")
    with torch.inference_mode():
        predicted = model.classifier(torch.from_numpy(np.array(bank.layer("embedding")))).argmax(1).numpy()
    assert found["right"][60:] == (predicted == bank.labels).tolist()
    points = np.array(found["maps"]["pca"]["points"])
    spread = np.concatenate([session.bank("end", name).layer("embedding") for name in ("train", "test")]).astype(float)
    assert points.var(0) / spread.var(0).sum() == pytest.approx(found["maps"]["pca"]["variance"])
    assert "79 images of train, test" in capsys.readouterr().out


@pytest.mark.slow
def test_umap_is_the_same_for_the_same_seed():
    features = np.concatenate([np.random.default_rng(i).normal(9 * i, 1, (30, 8)) for i in range(3)]).astype(np.float32)
    first, again = (embeddings.umap_of(features, 10, 0)["points"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    centres = [first[30 * i : 30 * i + 30].mean(0) for i in range(3)]
    for i in range(3):  # three clouds far apart stay three
        own = np.linalg.norm(first[30 * i : 30 * i + 30] - centres[i], axis=1)
        assert own.max() < min(np.linalg.norm(centres[i] - centres[j]) for j in range(3) if j != i)


def test_dimension_by_layer(run):
    dimension.main(arguments(run, "dimension", "--split", "train"))
    found = json.loads((run / "analysis" / "split-train" / "dimension.json").read_text())
    session = Session(arguments(run, "dimension", "--split", "train"))
    bank = session.bank("end")
    assert list(found["states"]["end"]) == [*session.taps, "embedding"]
    expected = two_nn(np.unique(np.float64(bank.layer("blocks.1.0", "mean")), axis=0))
    assert found["states"]["end"]["blocks.1.0"]["value"] == pytest.approx(expected)


def test_a_dimension_that_is_missing_is_missing_for_a_reason(run, capsys):
    dimension.main(arguments(run, "dimension", "--limit", "12"))
    told = capsys.readouterr().out
    assert "–: 12 different points are too few, TwoNN wants 20 (all layers)" in told
    values = {"states": {"end": {"a": {"reason": "r"}, "b": {"reason": ""}}, "start": {"a": {}, "b": {"reason": "r"}}}}
    assert dimension.reasons(values) == ["r (end a, start b)"]


def test_saliency_takes_the_surest_cases(run):
    saliency.main(arguments(run, "saliency", "--layers", "blocks.0.0,blocks.1.0"))
    path = run / "analysis" / "some-layers" / "saliency.json"
    found = json.loads(path.read_text())
    assert (found["way"], found["layer"]) == ("grad-cam", "blocks.1.0")
    sure = [case["probability"] for case in found["cases"] if not case["right"]]
    assert sure == sorted(sure, reverse=True) and len(sure) == 3
    assert all(np.array(case["map"]).shape == (8, 8) and np.array(case["map"]).min() >= 0 for case in found["cases"])
    assert all((case["true"] == case["predicted"]) == case["right"] for case in found["cases"])
    svg = ElementTree.parse(path.with_suffix(".svg")).getroot()
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}image"))) == len(found["cases"])


def test_fid_of_a_set_with_itself_and_another(run, tiny_set, tmp_path, make_set):
    other = make_set(tmp_path / "other", classes=2, seed=4, train=40, name="other")
    fid.main(arguments(run, "fid", "--split", "train", source=other.path))
    found = json.loads((run / "analysis" / "split-train" / "fid-other.json").read_text())
    session = Session(arguments(run, "fid", "--split", "train", source=other.path))
    own = session.bank("start", "train").layer("embedding")
    theirs = fid.embedding(session, "start", other.split("train"))
    assert (len(own), len(theirs)) == (60, 40)
    assert found["remark"].startswith("40 of the source and 60 of the target are too few images for a covariance of")
    assert fid.remark({"source": 5, "target": 9}, 4) == ""
    assert found["fid"] == pytest.approx(frechet_distance(own, theirs).fid, rel=1e-6)
    fid.main(arguments(run, "fid", "--split", "train", source=tiny_set))
    assert json.loads((run / "analysis" / "split-train" / "fid-tiny.json").read_text())["fid"] == pytest.approx(
        0, abs=1e-9
    )
    grey = make_set(tmp_path / "grey", channels=1)
    with pytest.raises(ValueError, match="has 1 channels, the images of tiny have 3: take a source of as many"):
        fid.main(arguments(run, "fid", source=grey.path))


def deep_set(folder: Path) -> Path:
    """Grey images of 16 bits, 40 x 40."""
    rng = np.random.default_rng(0)
    samples = []
    for n in range(16):
        pixels = rng.integers(0, 4096, (40, 40, 1)).astype(np.uint16)
        key = f"{n:08d}-{n * 2654435761 % 2**32:08x}"
        samples.append(Sample("test", key, pixels.tobytes(), "raw", (n % 2,), 40, 40, n))
    levels = {"mean": [0.02], "std": [0.005]}
    return write_set(folder, samples, name="grey", classes=["a", "b"], channels=1, bits=16, **levels).path


@pytest.mark.parametrize("way", ["display windows", "repeat"])
def test_fid_of_grey_images_that_reach_the_net_in_three_channels(way, tiny_set, tmp_path):
    grey = deep_set(tmp_path / "grey")
    windows = {"display_window": (1000, 2000, 500, 900, 3000, 900)} if way == "display windows" else {}
    first_conv = "repeat" if way == "repeat" else "sum"
    made = make_run(tmp_path / "run", grey, *SMALL, in_chans=3, first_conv=first_conv, data=windows)
    fid.main(arguments(made, "fid", "--split", "test", source=grey))
    assert result(made, "fid-grey")["fid"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="has 3 channels, the images of run have 1: take a source of as many"):
        fid.main(arguments(made, "fid", "--split", "test", source=tiny_set))


def checkpoint(run: Path, step: int, state: dict[str, torch.Tensor]) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    torch.save({"module": state}, folder / "mp_rank_00_model_states.pt")


def test_a_trajectory_goes_from_start_to_end(tmp_path, tiny_set):
    run = make_run(tmp_path / "run", tiny_set, *SMALL)
    with pytest.raises(ValueError, match="keeps 0 checkpoints: train with --keep-checkpoints 10"):
        trajectory.main(arguments(run, "trajectory"))
    start, end = (read_weights(run / "weights" / f"{name}.safetensors")[0] for name in ("init", "best"))
    middle = {key: (start[key] + end[key]) / 2 if start[key].is_floating_point() else end[key] for key in end}
    for step, state in ((3, start), (6, middle), (9, end)):
        checkpoint(run, step, state)
    trajectory.main(arguments(run, "trajectory"))
    found = result(run, "trajectory")
    assert found["steps"] == [0, 3, 6, 9]
    with_start, with_end = np.array(found["with_start"], float), np.array(found["with_end"], float)
    np.testing.assert_allclose(with_start[:, :2], 1)
    np.testing.assert_allclose(with_end[:, 3], 1)
    np.testing.assert_allclose(with_start[:, 3], with_end[:, 0])


REFUSED: dict[str, tuple[Callable[[Namespace], None], str, tuple[str, ...], str]] = {
    "attention of a net": (attention.main, "attention", (), "has no blocks with attention over all patches"),
    "split": (dimension.main, "dimension", ("--split", "tests"), "split 'tests' does not exist in tiny; it has train"),
    "layer": (
        dimension.main,
        "dimension",
        ("--layers", "blocks.55.3"),
        r"unknown layer 'blocks.55.3'; nearest: blocks",
    ),
    "no bank": (dimension.main, "dimension", ("--banks", "nowhere"), "nowhere holds no bank of this question"),
    "map of one place": (saliency.main, "saliency", ("--layers", "classifier"), "no layer gives a spatial map"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_line(run, name):
    script, of, flags, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        script(arguments(run, of, *flags))
    assert "\n" not in str(error.value)


def test_a_run_without_a_start_is_refused(tmp_path, tiny_set):
    bare = make_run(tmp_path / "bare", tiny_set, *SMALL, init=False)
    with pytest.raises(ValueError, match=r"no weights file .*init\.safetensors"):
        dimension.main(arguments(bare, "dimension"))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), FAMILIES)
def test_every_script_runs_for_every_family(tmp_path, tiny_set, model, side):
    run = make_run(tmp_path / "run", tiny_set, model, side)
    for step, seed in ((2, 3), (4, 4)):
        checkpoint(run, step, create(model, 3, 3, img_size=side, seed=seed).state_dict())
    scripts = [embeddings, dimension, saliency, trajectory] + ([attention] if model.startswith("deit") else [])
    for script in scripts:
        name = script.__name__.rsplit(".", 1)[-1]
        script.main(arguments(run, name))
        assert result(run, name)["analysis"] == name
    fid.main(arguments(run, "fid", source=tiny_set))
    heads = result(run, "attention")["states"]["end"]["blocks.0.attn"]["mean"] if attention in scripts else [1]
    assert all(0 < one < 1.5 * side for one in heads)


def test_a_limit_counts_damaged_images_in_attention_as_everywhere(tmp_path, tiny_set, monkeypatch):
    """Of the first three images one is damaged: two are measured, and no fourth in its place."""
    run, whole = make_run(tmp_path / "run", tiny_set, "deit_tiny_patch16_224", 32), Session.loader

    def measured(valid: list[bool]) -> np.ndarray:
        def marked(session: Session, split: Any, consumed: int = 0) -> Iterator[Any]:
            for batch in whole(session, split, consumed):
                yield batch._replace(valid=torch.tensor(valid)[: len(batch.valid)])

        monkeypatch.setattr(Session, "loader", marked)
        found = attention.measure(Session(arguments(run, "attention", "--limit", "3")), "end")
        return np.stack([row["mean"] for row in found.values()])

    np.testing.assert_array_equal(measured([True, False] + [True] * 6), measured([True, False, True] + [False] * 5))
