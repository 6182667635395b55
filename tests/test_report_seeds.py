"""What a report says over seeds, and how it looks in print and to the colour-blind.

python -m pytest tests/test_report_seeds.py
"""

import itertools
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_gains import finished_run

from analysis import report, seeds
from analysis.chart_style import DARK, LIGHT, NUM_SERIES
from analysis.charts import Panel, Series, lines

BLIND = {  # Machado et al. 2009, severity 1, on linear RGB
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(colour: str, kind: str) -> np.ndarray:
    """CIELAB [3] of a hex colour as someone with a form of colour blindness sees it."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(BLIND[kind]) @ linear, 0, 1) / TO_XYZ.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_series_keep_apart_under_colour_blindness(colours, kind):
    seen = [lab(colours[f"s{i}"], kind) for i in range(NUM_SERIES)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


def test_intervals_over_seeds_are_scipys():
    a, b = [0.58, 0.51, 0.437], [0.22, 0.204, 0.081]
    found = seeds.spread(a)
    assert found["interval"] == pytest.approx(stats.t.interval(0.95, 2, np.mean(a), stats.sem(a)))
    test = stats.ttest_ind(a, b, equal_var=False)
    found = seeds.difference(a, b)
    assert (found["p"], *found["interval"]) == pytest.approx((test.pvalue, *test.confidence_interval(0.95)))
    assert np.isnan(seeds.difference([0.5], b)["p"]) and seeds.difference([0.5], b)["value"] == 0.5 - np.mean(b)
    assert np.isnan(seeds.spread([0.5])["interval"][0]) and seeds.spread([0.5, float("nan")])["runs"] == 1


def test_a_logarithmic_panel_takes_no_zero():
    plain = [Panel("p", [Series("s", [0, 1, 2], [0.001, 0.01, 1.0])], log=True)]
    assert all(f">{mark}</text>" in lines(plain) for mark in ("0.001", "0.01", "0.1", "1"))
    with_zero = [Panel("p", [Series("s", [0, 1], [0.0, 1.0])], log=True)]
    assert ">0</text>" in lines(with_zero)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """The report of RI, ST and WT of two seeds, listed in that order, without analyses."""
    root = tmp_path_factory.mktemp("seeds")
    text = f'name = "s"\n[base]\nshards = "{tiny_set}"\nmodel = "resnet18"\n'
    (root / "s.toml").write_text(text + '[grid]\nstart = ["ri", "st", "wt"]\nseed = [0, 1]\n')
    for start, right in (("wt", 4.0), ("st", 1.0), ("ri", 0.5)):
        for seed in (0, 1):
            finished_run(root / "out" / "s" / f"{start}-{seed}", tiny_set, start, seed, right)
    out = root / "report.html"
    report.main(
        Namespace(
            runs=[root / "s.toml"], studies=root / "out", out=out, shards=None, model=None, json=False, quiet=False
        )
    )
    return out


def test_the_head_tells_means_over_seeds(page):
    found = json.loads(page.with_suffix(".json").read_text())
    (cell,) = found["gains"]["cells"]
    lead = page.read_text().split('<p class="lead">')[1].split("</p>")[0]
    for start, row in cell["over_seeds"]["starts"].items():
        assert f"{start.upper()} <strong>{row['mean']:.3f}</strong>" in lead and row["runs"] == 2
    assert "(means of 2 seeds)" in lead
    for difference in cell["over_seeds"]["differences"].values():
        low, high = difference["interval"]
        assert low is None or low < difference["value"] < high


def test_starts_keep_their_colours_whatever_the_order_of_the_grid(page):
    found = json.loads(page.with_suffix(".json").read_text())
    assert [run["start"] for run in found["runs"]] == ["WT", "ST", "RI"]


def test_what_was_not_worked_out_is_said(page):
    text = page.read_text()
    assert text.count("lacks analysis/knn.py, analysis/probe.py, analysis/cka.py") == 3


def test_json_holds_what_the_page_draws(page):
    for run in json.loads(page.with_suffix(".json").read_text())["runs"]:
        counts = np.array(run["confusion"]["counts"])
        assert counts.sum() == 19 == sum(row["cases"] for row in run["calibration"])


def test_print_unfolds_tables_and_strands_no_heading(page):
    rules = page.read_text().split("@media print{")[1]
    assert "details::details-content{content-visibility:visible" in rules
    assert "h2,h2+p,h3,h4" in rules and "print-color-adjust:exact" in rules
