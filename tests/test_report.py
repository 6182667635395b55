"""The report: one page that stands on its own, from results alone."""

import csv
import json
import re
from argparse import Namespace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis import report
from analysis.chart_parts import number
from analysis.chart_style import DARK, LIGHT, NUM_SHADES, standalone
from analysis.charts import Dots, Panel, Series, heat_map, lines, scatter
from analysis.report_data import Report, compare_all, gather_finished, load
from analysis.report_words import metric_name
from shards.shardset import ShardSet
from train.config import Config
from train.rundir import WeightsInfo, save_weights

LAYERS = ["stem", "blocks.0", "blocks.1", "head"]
VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Balanced tags, unique ids, nothing from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("src", "href") if name in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write_run(folder: Path, set_path: Path, start: str, *, analyses: bool = True, value: float = 0.8) -> Path:
    """A run directory as training and the analyses leave it, with made-up numbers."""
    import torch

    shards = ShardSet(set_path)
    manifest = shards.manifest
    config = Config.model_validate(
        {"data": {"shards": str(set_path), "image_size": 32}, "model": {"model": "resnet18", "start": start}}
    ).model_dump(mode="json")
    (folder / "weights").mkdir(parents=True)
    info = WeightsInfo(
        "resnet18", shards.num_classes, 3, 32, tuple(shards.classes), (0.5,) * 3, (0.2,) * 3, manifest.digest, config
    )
    save_weights(folder / "weights" / "best.safetensors", {"x": torch.zeros(1)}, info)
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": config, "versions": {"torch": "2"}}))
    target = manifest.target_metric
    test = {"loss": 0.5, target: value, "roc_auc": None, "samples": 19.0}
    results = {
        "run": folder.name,
        "start": start,
        "shards": manifest.name,
        "target_metric": target,
        "steps": 9,
        "test": test,
    }
    (folder / "results.json").write_text(json.dumps(results))
    records = [{"kind": "train", "step": i, "epoch": i / 3, "loss": 1 / i} for i in range(1, 10)]
    records += [{"kind": "val", "step": i, "epoch": i / 3, "loss": 1 / i, target: i / 10} for i in (3, 6, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if analyses:
        write_analyses(folder / "analysis", target, value)
    return folder


def write_analyses(folder: Path, target: str, value: float) -> None:
    folder.mkdir()
    request = {
        "layers": LAYERS,
        "images": 19,
        "split": "test",
        "set": "tiny",
        "phantom": True,
        "k": 5,
        "weights": {"end": "f" * 32},
    }
    state = {
        "embedding": {target: value},
        "layers": {layer: {"mean": {target: value - i / 10}} for i, layer in enumerate(LAYERS)},
    }
    matrix = (np.eye(4) * 0.5 + 0.25).tolist()
    blocks = {"start-start": matrix, "end-start": matrix, "end-end": matrix}
    frame = {"null": {"largest": 0.01}, "ceiling": 0.9, "image_halves": [0.5, None], "procrustes": 0.7, "cca_r2": None}
    l2 = {layer: {"all": {"relative": 0.1 * i}} for i, layer in enumerate(LAYERS)}
    content = {
        "knn": {"target": target, "bank_images": 60, "k_used": 60, "states": {"start": state, "end": state}},
        "cka": {
            "about": "linear CKA", "features": "pooled", "sides": {"start": LAYERS, "end": LAYERS}, "whole": blocks,
            "minibatch": blocks, "same_layer": dict.fromkeys(LAYERS, frame),
        },
        "l2": {"layers": l2},
        "reinit": {"target": target, "baseline": {target: value}, "layers": {layer: {target: 0.5} for layer in LAYERS}},
    }  # fmt: skip
    for name, values in content.items():
        (folder / f"{name}.json").write_text(json.dumps({"format": 1, "analysis": name, "request": request, **values}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    pair = (("first-wt", "wt", 0.81), ("second<&>", "ri", 0.5))
    return [write_run(folder / name, tiny_set, start, value=value) for name, start, value in pair]


@pytest.fixture(scope="module")
def document(runs: list[Path]) -> str:
    return report.build_report(compare_all(load(runs, None, None), gather_finished(runs)))


def test_page_is_well_formed_and_stands_alone(document):
    checker = Checker()
    checker.feed(document)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert "script" not in checker.tags
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert "url(" not in document
    assert "@import" not in document
    assert len(document) < report.MAX_BYTES


def test_page_answers_its_questions(document):
    for text in ("What was trained on what", "Is the data sound?", "How well?", "Where does reuse happen?", "0.810"):
        assert text in document
    assert "Phantoms, not patients" in document
    assert "second&lt;&amp;&gt;" in document
    assert "second<&>" not in document
    assert "no pair of splits shares one" in document
    assert document.count("data:image/jpeg;base64,") == 3


def test_page_is_for_light_and_dark(document):
    assert "prefers-color-scheme:dark" in document
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", document))
    assert used - {"tone"} <= {*LIGHT, "page", "edge", *(f"h{i}" for i in range(NUM_SHADES))}
    assert LIGHT.keys() == DARK.keys()


def test_script_writes_page_and_csv(runs, tmp_path, capsys):
    out = tmp_path / "made" / "both.html"
    report.main(Namespace(runs=runs, out=out, shards=None, model=None, studies=tmp_path, json=False, quiet=False))
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    lost = [row for row in rows if row["run"] == "first-wt" and row["what"] == "reinit"]
    assert [row["layer"] for row in lost] == LAYERS
    assert float(lost[0]["value"]) == pytest.approx(0.31)
    assert str(out) in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"name a file that ends in \.html"):
        report.main(
            Namespace(runs=runs, out=tmp_path, shards=None, model=None, studies=tmp_path, json=False, quiet=False)
        )


def test_run_without_analyses_or_shards_still_has_a_page(tiny_set, tmp_path):
    run = write_run(tmp_path / "bare", tiny_set, "st", analyses=False)
    (run / "results.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"]["shards"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    page = report.build_report(Report(load([run], None, None)))
    assert "No run of this report has a test result yet" in page
    assert "No analysis has been run" in page
    assert "not where it was" in page


def test_one_run_twice_is_refused(runs):
    with pytest.raises(ValueError, match="named twice"):
        load([runs[0], runs[0]], None, None)


def test_charts_are_xml_and_standalone_has_no_variables():
    panel = Panel("<loss>", [Series("a & b", [0, 1, 2], [1.0, float("nan"), 3.0])], levels=[(2.0, "level", 1)])
    matrix = heat_map(np.array([[0.0, np.nan]]), ["r"], ["a", "b"], title="t", x_title="x", y_title="y")
    dots = scatter([Dots("d", [0.0], [1.0], ["<n>"])], title="t", x_title="x", y_title="y")
    for svg in (lines([panel]), lines([panel], categories=["u", "v", "w"]), matrix, dots):
        ElementTree.fromstring(svg)
        alone = standalone(svg)
        ElementTree.fromstring(alone)
        assert "var(" not in alone
    assert 'class="absent"' in matrix


def test_marks_stand_where_their_values_say():
    svg = ElementTree.fromstring(lines([Panel("p", [Series("s", [0, 1], [0.0, 10.0])], height=100)], width=274))
    marks = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert marks == [(0.0, 100.0), (200.0, 0.0)]


def test_a_value_alone_is_seen_also_in_a_series_without_marks():
    def circles(*values: float) -> int:
        return lines([Panel("p", [Series("s", range(len(values)), values, marks=False)])]).count("<circle")

    assert circles(0.5) == 1  # the training loss of a run of one record
    assert circles(0.5, float("nan"), 0.4, 0.3) == 1 and circles(0.5, 0.4) == 0


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.1235"), (3.0, "3"), (float("nan"), "–"), (0, "0"), (1e-7, "1.00e-07")]
)
def test_number(value, text):
    assert number(value) == text


def test_sets_of_other_tasks_keep_their_own_metrics_and_names(tmp_path, tiny_set, make_set):
    other = make_set(tmp_path / "other", name="chests", classes=2, task="multi-label", test=21).path
    runs = [write_run(tmp_path / "eyes", tiny_set, "wt"), write_run(tmp_path / "chest", other, "wt", value=0.7)]
    mine, theirs = (ShardSet(path).manifest.target_metric for path in (tiny_set, other))
    assert mine != theirs
    html = report.build_report(compare_all(load(runs, None, None), gather_finished(runs)))
    both = " / ".join(metric_name(name) for name in (mine, theirs))
    assert f"k-NN {both}; dashed" in html
    assert all(f"Validation {metric_name(name)}<" in html for name in (mine, theirs))
    assert html.count("class=target") == 2
    assert all(f"{title} · {name}</h3>" in html for title in ("Splits", "Provenance") for name in ("tiny", "chests"))
    assert "tiny: 19 test images · chests: 19 test images" in html
