"""Gains and curves over the runs of a study, from results and predictions as training leaves them."""

import csv
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from analysis import curves, gains
from analysis.dot_charts import LARGE, SMALL, radius
from analysis.study_runs import gather
from shards.shardset import ShardSet
from train.config import Config
from train.evaluation import Predictions
from train.metrics import evaluate
from train.predictions import write_predictions
from train.rundir import WeightsInfo, save_weights

RIGHT = {"wt": 6.0, "st": 1.0, "ri": 0.5}


def finished_run(folder: Path, set_path: Path, start: str, seed: int, right: float, **options: Any) -> Path:
    """A finished run whose logits lean to the right class by `right`."""
    shards, model = ShardSet(set_path), options.pop("model", "resnet18")
    manifest, split = shards.manifest, shards.split("test")
    fields = {
        "data": {"shards": str(set_path), "image_size": 32, "fraction": options.pop("fraction", 1.0)},
        "model": {"model": model, "start": start, **options},
        "training": {"seed": seed},
    }
    config = Config.model_validate(fields).model_dump(mode="json")
    (folder / "weights").mkdir(parents=True)
    info = WeightsInfo(
        model, shards.num_classes, 3, 32, tuple(shards.classes), (0.5,) * 3, (0.2,) * 3, manifest.digest, config
    )
    for name in ("init", "best"):
        save_weights(folder / "weights" / f"{name}.safetensors", {"x": torch.zeros(1)}, info)
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": config}))
    rng = np.random.default_rng([seed, len(start), int(right * 10)])
    order = np.argsort(split.sample_ids())
    labels = split.labels()[order]
    logits = rng.normal(size=(len(labels), shards.num_classes)) + right * np.eye(shards.num_classes)[labels]
    found = Predictions(split.sample_ids()[order], labels, logits)
    write_predictions(folder / "predictions-test.csv", split, found)
    test = evaluate(manifest.task, labels, found.probabilities(manifest.task), shards.num_classes)
    content = {
        "run": folder.name, "start": start, "shards": manifest.name, "manifest_digest": manifest.digest,
        "target_metric": manifest.target_metric, "test": test,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, make_set) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    return [make_set(root / name, name=name, seed=i, test=40).path for i, name in enumerate("AB")]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, sets: list[Path]) -> Path:
    """Two models on two sets from three starts of two seeds, as a study file with its runs."""
    root = tmp_path_factory.mktemp("study")
    text = f'name = "small"\n[grid]\nshards = {json.dumps([str(one) for one in sets])}\n'
    text += 'model = ["resnet18", "resnet26"]\nstart = ["wt", "st", "ri"]\nseed = [0, 1]\n'
    (root / "small.toml").write_text(text)
    for i, one in enumerate(sets):
        for model in ("resnet18", "resnet26"):
            for start, right in RIGHT.items():
                for seed in (0, 1):
                    lean = right + i * 0.4 * (start == "st") + 0.3 * (model == "resnet26")
                    name = f"{one.name}-{model}-{start}-{seed}"
                    finished_run(root / "out" / "small" / name, one, start, seed, lean, model=model)
    return root / "small.toml"


def arguments(study: Path, **options: Any) -> Namespace:
    made = {"runs": [study], "studies": study.parent / "out", "out": None, "draws": 60, "seed": 0, "fid": None}
    made |= {"json": False, "quiet": False}
    return Namespace(**made | options)


def read(study: Path, name: str = "gains") -> dict[str, Any]:
    return json.loads((study.parent / "out" / "small" / "analysis" / f"{name}.json").read_text())


def test_gains_of_a_study(study, capsys):
    gains.main(arguments(study))
    found = read(study)
    assert [(each["set"], each["model"]) for each in found["cells"]] == [
        ("A", "resnet18"), ("A", "resnet26"), ("B", "resnet18"), ("B", "resnet26"),
    ]  # fmt: skip
    for each in found["cells"]:
        medians = {start: float(np.median(scores)) for start, scores in each["scores"].items()}
        assert each["medians"] == pytest.approx(medians)
        assert each["size"] == pytest.approx(medians["wt"] / medians["ri"])
        assert each["features"] == pytest.approx((medians["wt"] - medians["st"]) / medians["wt"])
        for name in ("size", "features"):
            low, high = each[f"{name}_interval"]
            assert low < each[name] < high
        assert each["groups"] == each["test_images"] == 40
        assert each["differences"]["wt-ri"]["p"] <= each["differences"]["wt-ri"]["p_holm"] <= 1
    colours = [each["colour"] for each in found["cells"]]
    assert min(colours) == 0 and max(colours) == 1
    assert found["cells"][int(np.argmax(colours))]["features"] == max(each["features"] for each in found["cells"])
    assert found["spearman"]["cells"] == 4
    assert len(found["request"]["runs"]) == 24
    told = capsys.readouterr().out
    assert "Spearman of size and colour over 4 cells" in told and "resnet26" in told


def test_the_same_numbers_as_csv_and_in_the_figure(study):
    gains.main(arguments(study))
    found, folder = read(study), study.parent / "out" / "small" / "analysis"
    rows = list(csv.DictReader((folder / "gains.csv").read_text().splitlines()))
    assert [float(row["size"]) for row in rows] == [each["size"] for each in found["cells"]]
    assert [float(row["wt-st_p_holm"]) for row in rows] == [
        each["differences"]["wt-st"]["p_holm"] for each in found["cells"]
    ]
    svg = ElementTree.parse(folder / "gains.svg").getroot()
    circles = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    radii = [
        float(circle.get("r")) for circle in circles if circle.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    assert (min(radii), max(radii)) == (SMALL, LARGE)


def test_area_grows_with_size():
    assert radius(2.0, (1.0, 3.0)) ** 2 == pytest.approx((SMALL**2 + LARGE**2) / 2)
    assert radius(float("nan"), (1.0, 3.0)) == SMALL


def test_fid_gives_the_x_axis(study):
    gains.main(arguments(study, fid=["A=141", "B=155.5"]))
    assert [each["fid"] for each in read(study)["cells"]] == [141, 141, 155.5, 155.5]
    assert "FID to the source" in (study.parent / "out" / "small" / "analysis" / "gains.svg").read_text()
    assert gains.distances(["published"])["DDSM"] == 155
    with pytest.raises(ValueError, match="--fid A: write SET=NUMBER"):
        gains.distances(["A"])


def test_spearman_is_scipys_and_wants_three_cells():
    assert gains.spearman([1, 2, 3, 4], [1, 3, 2, 4])["rho"] == pytest.approx(0.8)
    assert np.isnan(gains.spearman([1, 2], [1, 2])["rho"])
    assert np.isnan(gains.spearman([1, 2, float("nan")], [1, 2, 3])["rho"])


def test_a_gain_over_nothing_is_not_a_number():
    size, features = gains.gains(np.array([0.5, 0.5]), np.array([0.25, 0.1]), np.array([-0.1, 0.25]))
    np.testing.assert_array_equal(size, [np.nan, 2])
    np.testing.assert_array_equal(features, [0.5, 0.8])


def test_mistakes_get_one_line(study, sets, tmp_path, make_set):
    out = study.parent / "out" / "small"
    no_ri = [out / f"A-resnet18-{start}-0" for start in ("wt", "st")]
    other = make_set(tmp_path / "moved", name="A", seed=9)
    strange = finished_run(tmp_path / "strange", other.path, "ri", 0, 0.5)
    bare = finished_run(tmp_path / "bare", sets[0], "ri", 0, 0.5)
    (bare / "results.json").write_text(json.dumps(json.loads((bare / "results.json").read_text()) | {"test": None}))
    running = finished_run(tmp_path / "running", sets[0], "ri", 0, 0.5)
    (running / "results.json").unlink()
    empty = tmp_path / "empty.toml"
    empty.write_text("[grid]\nseed = [0, 1]")
    cases: Mapping[str, list[Path]] = {
        r"resnet18 on A has no RI run": no_ri,
        r"were trained on different shard sets \(A \w{8}, A \w{8}\): compare runs of one set": [*no_ri, strange],
        r"bare has no test scores: its shard set has no test split": [*no_ri, bare],
        r"running has no results.json: the run has not ended": [*no_ri, running],
        r"both wt of resnet18 on A with seed 0: name one of them": [no_ri[0], no_ri[0]],
        r"no run of .*empty.toml is done: python train/study.py": [empty],
        r"no run directory: a comparison of runs reads": [no_ri[0] / "weights" / "best.safetensors"],
    }
    for message, runs in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            gains.main(arguments(study, runs=runs, out=tmp_path / "out"))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_said(study, tmp_path):
    path = study.parent / "out" / "small" / "A-resnet18-ri-1" / "results.json"
    kept = path.read_text()
    path.unlink()
    try:
        found = gather([study], study.parent / "out")
    finally:
        path.write_text(kept)
    assert found.remarks == ("1 of 24 runs of small are not done",) and len(found.runs) == 23


def test_without_predictions_there_are_no_intervals(study, tmp_path):
    path = study.parent / "out" / "small" / "A-resnet18-ri-1" / "predictions-test.csv"
    kept = path.read_text()
    path.unlink()
    try:
        gains.main(arguments(study, out=tmp_path))
    finally:
        path.write_text(kept)
    found = json.loads((tmp_path / "gains.json").read_text())
    assert found["cells"][0]["size_interval"] == [None, None] and found["cells"][1]["size_interval"][0] is not None
    assert "A" in found["remarks"][0] and "no predictions of test images" in found["remarks"][0]


def test_curves_by_depth_and_by_data(sets, tmp_path, capsys):
    runs = [finished_run(tmp_path / f"wt-{seed}", sets[0], "wt", seed, 5.0) for seed in (0, 1)]
    runs += [finished_run(tmp_path / f"wt-half-{seed}", sets[0], "wt", seed, 2.0, fraction=0.5) for seed in (0, 1)]
    runs += [finished_run(tmp_path / f"st-{seed}", sets[0], "st", seed, 0.1) for seed in (0, 1)]
    runs += [finished_run(tmp_path / "until", sets[0], "st", 0, 1.0, wt_until="layer1.0")]
    runs += [finished_run(tmp_path / "until-3", sets[0], "st", 0, 2.0, wt_until="5")]
    curves.main(Namespace(runs=runs, studies=tmp_path, out=tmp_path / "out", draws=50, seed=0, json=False, quiet=False))
    found = json.loads((tmp_path / "out" / "curves.json").read_text())
    depth, data = found["curves"]
    points = depth["series"]["WT up to n, ST beyond"]
    assert [point["x"] for point in points] == [0, 2, 5, len(depth["groups"])]
    assert [len(point["scores"]) for point in points] == [2, 1, 1, 2]
    assert points[-1]["mean"] > points[0]["mean"]
    assert all(low <= point["mean"] <= high for point in points for low, high in [point["interval"]])
    assert list(data["series"]) == ["WT"] and [point["x"] for point in data["series"]["WT"]] == [0.5, 1]
    rows = list(csv.DictReader((tmp_path / "out" / "curves.csv").read_text().splitlines()))
    assert [float(row["mean"]) for row in rows[:4]] == [point["mean"] for point in points]
    ElementTree.parse(tmp_path / "out" / "curves.svg")
    with pytest.raises(ValueError, match="these runs give no curve: by depth wants st runs of several wt_until"):
        curves.main(
            Namespace(runs=runs[:2], studies=tmp_path, out=tmp_path / "none", draws=5, seed=0, json=False, quiet=False)
        )
