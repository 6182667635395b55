"""The report of runs and of a study in headless Chromium: no console error, nothing cut off, no network."""

import csv
import json
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_gains import finished_run
from test_report import Checker, write_analyses

from analysis import report
from analysis.report_cases import surest_mistakes, words_of
from analysis.report_scores import reliability_of
from shards.shardset import ShardSet
from train.predictions import Told

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """WT, ST and RI of two seeds, one boundary, one fraction; analyses of the first run."""
    root = tmp_path_factory.mktemp("study")
    text = f'name = "s"\n[base]\nshards = "{tiny_set}"\nmodel = "resnet18"\n'
    text += '[[grid]]\nstart = ["wt", "st", "ri"]\nseed = [0, 1]\n'
    text += '[[grid]]\nstart = ["st"]\nwt_until = ["4"]\nseed = [0]\n'
    text += '[[grid]]\nstart = ["wt"]\nfraction = [0.5]\nseed = [0]\n'
    (root / "s.toml").write_text(text)
    out = root / "out" / "s"
    for start, right in (("wt", 4.0), ("st", 1.0), ("ri", 0.5)):
        for seed in (0, 1):
            finished_run(out / f"{start}-{seed}", tiny_set, start, seed, right)
    finished_run(out / "st-wt_until4-0", tiny_set, "st", 0, 2.0, wt_until="4")
    finished_run(out / "wt-fraction0.5-0", tiny_set, "wt", 0, 2.0, fraction=0.5)
    for name in ("wt-0", "wt-1"):
        write_analyses(out / name / "analysis", ShardSet(tiny_set).manifest.target_metric, 0.8)
    return root / "s.toml"


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    args = {"runs": [study], "studies": study.parent / "out", "out": None, "shards": None, "model": None}
    args |= {"json": False, "quiet": False}
    report.main(Namespace(**args))
    return study.parent / "out" / "s" / "report.html"


def test_a_study_shows_the_median_run_of_each_start_and_compares_all(page):
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and "script" not in checker.tags
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    for words in (
        "How do the runs compare?",
        "What transfer gave, and what of it were features",
        "Up to where must features be pretrained?",
        "With how much data does it matter?",
        "Which classes are mistaken for which?",
        "Do the probabilities mean what they say?",
        "The surest mistakes",
        "st-wt_until4-0",
    ):
        assert words in text
    assert text.count('class="tile"') == 3


def test_the_same_numbers_lie_beside_it(page):
    rows = list(csv.DictReader(page.with_suffix(".csv").read_text().splitlines()))
    found = json.loads(page.with_suffix(".json").read_text())
    assert [float(row["value"]) for row in rows if row["value"]] == [
        row["value"] for row in found["values"] if row["value"] is not None
    ]
    (cell,) = found["gains"]["cells"]
    assert cell["set"] == "tiny" and cell["size_interval"][0] < cell["size"]
    assert [curve["by"] for curve in found["curves"]["curves"]] == ["depth", "data"]


def test_tensorboard_gets_the_curves_once(study, page):
    for _ in range(2):
        args = {"runs": [study], "studies": study.parent / "out", "out": None, "shards": None, "model": None}
        args |= {"json": False, "quiet": False}
        report.main(Namespace(**args))
    folders = list((study.parent / "out" / "s").glob("*/tensorboard/analysis"))
    assert len(folders) == 1  # the median run of wt, which alone has analyses
    events = EventAccumulator(str(folders[0])).Reload()
    assert "analysis/cka" in events.Tags()["scalars"]
    points = events.Scalars("analysis/knn")
    assert [point.step for point in points] == [0, 1, 2, 3]
    assert [point.value for point in points] == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_reliability_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6]])
    found = reliability_of("single-label", np.array([0, 1, 1]), probabilities)
    np.testing.assert_allclose(found, [[0.6, 1, 1], [0.95, 0.5, 2]])
    labels = np.array([[1.0, np.nan], [0.0, 1.0]])
    found = reliability_of("multi-label", labels, np.array([[0.95, 0.5], [0.95, 0.4]]))
    np.testing.assert_allclose(found, [[0.6, 0, 1], [0.95, 0.5, 2]])


def test_surest_mistakes_come_first():
    said = Told(("a", "b", "c"), np.array([0, 0, 1]), np.array([[0.3, 0.7], [0.1, 0.9], [0.2, 0.8]]))
    assert surest_mistakes(said, 5).tolist() == [1, 0]
    assert words_of(said, 1, ["no<", "yes"]) == "yes (0.90), is no&lt;"
    many = Told(("a", "b"), np.array([[1.0, np.nan], [0.0, 1.0]]), np.array([[0.1, 0.9], [0.2, 0.6]]))
    assert surest_mistakes(many, 5).tolist() == [0]
    assert words_of(many, 0, ["x", "y"]) == "x 0.10, is present"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_in_chromium(page, tmp_path, width, dark):
    """No console message, no request, and nothing wider than the window, measured in the page itself."""
    probe = "<script>addEventListener('load',()=>{document.title=[Math.min(...[...document.querySelectorAll(" \
        "'.scroll svg.chart')].map(e=>e.getBoundingClientRect().width/e.viewBox.baseVal.width)),innerWidth," \
        "document.documentElement.scrollWidth," \
        "matchMedia('(prefers-color-scheme:dark)').matches,performance.getEntriesByType('resource')" \
        ".filter(e=>!e.name.startsWith('data:')).length].join(' ')})</script>"  # fmt: skip
    copy = tmp_path / "probed.html"
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", f"--window-size={width},900",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = done.stdout.split("<title>")[1].split("</title>")[0].split()
    share, inner, wide, is_dark, requests = float(title[0]), *map(int, title[1:3]), title[3] == "true", int(title[4])
    assert share > 0.7  # of a chart's own size: letters of 9.5 px stay readable
    assert wide <= inner and is_dark == dark and requests == 0
    assert "CONSOLE" not in done.stderr
