"""k-NN and linear probes over an untrained run, held against scikit-learn from the same features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_samples
from made_runs import SMALL, arguments, make_run, result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis import knn, probe
from analysis.session import Session
from shards.sets import write_set
from train.knn import knn_probabilities
from train.metrics import ignoring_unsaid


def test_knn_agrees_with_scikit_learn(run):
    knn.main(arguments(run, "--k", "7"))
    found, session = result(run, "knn"), Session(arguments(run))
    bank, queries = session.bank("end", "train"), session.bank("end")
    for layer in ("stem", "embedding"):
        oracle = KNeighborsClassifier(
            7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
        ).fit(np.float64(bank.layer(layer)), bank.labels)
        expected = session.metrics(queries.labels, oracle.predict_proba(np.float64(queries.layer(layer))))
        state = found["states"]["end"]
        row = state["embedding"] if layer == "embedding" else state["layers"][layer]["mean"]
        assert row == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert found["k_used"] == 7
    assert found["request"]["images"] == 19
    assert (run / "analysis" / "knn.svg").read_text().startswith("<svg")


def test_k_comes_from_the_manifest_and_shrinks_to_the_bank(run, capsys):
    knn.main(arguments(run, "--limit", "9", "--layers", "classifier", "--out", str(run / "few")))
    found = json.loads((run / "few" / "knn.json").read_text())
    assert found["request"]["k"] == 200
    assert found["k_used"] == found["bank_images"] == 9
    assert list(found["states"]["end"]["layers"]) == ["classifier"]


def test_probe_is_scikit_learns_regression_of_the_chosen_strength(run):
    """The whole path held against another solver of scikit-learn, by hand from the banks."""
    probe.main(arguments(run, "--layers", "stem", script="probe"))
    found = json.loads((run / "analysis" / "some-layers" / "probe.json").read_text())
    session = Session(arguments(run, "--layers", "stem"))
    bank, queries = session.bank("end", "train"), session.bank("end")
    for layer, how in (("stem", "mean"),):
        state = found["states"]["end"]
        strength = state["chosen"][f"{layer} {how}"]["strength"]
        oracle = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / (strength * 60), solver="newton-cholesky", tol=1e-12)
        ).fit(np.float64(bank.layer(layer)), bank.labels)
        expected = session.metrics(queries.labels, oracle.predict_proba(np.float64(queries.layer(layer))))
        row = state["embedding"] if layer == "embedding" else state["layers"][layer][how]
        assert row == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def blank_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three labels of which the training split ignores the first throughout."""
    folder = tmp_path_factory.mktemp("blank")
    sizes = {"train": 40, "val": 16, "test": 24}
    samples = [
        replace(sample, labels=(-32768, *sample.labels[1:])) if sample.split == "train" else sample
        for sample in tiny_samples(sizes, 3, 3, "multi-label", "raw", 0)
    ]
    names = {"name": "blank", "classes": ["first", "b", "c"], "channels": 3, "task": "multi-label"}
    return make_run(folder / "run", write_set(folder / "set", samples, **names).path, *SMALL)


def test_a_label_that_the_bank_ignores_is_left_out_and_told(blank_run, capsys):
    knn.main(arguments(blank_run, "--layers", "classifier", "--k", "7"))
    probe.main(arguments(blank_run, "--layers", "classifier", script="probe"))
    assert capsys.readouterr().out.count("all of train ignores first: no metric has it") == 2
    part = blank_run / "analysis" / "some-layers"
    session = Session(arguments(blank_run, "--layers", "classifier"))
    bank, queries = session.bank("end", "train"), session.bank("end")
    found = json.loads((part / "knn.json").read_text())
    oracle = knn_probabilities(
        bank.layer("embedding"), bank.labels[:, 1:], queries.layer("embedding"), num_classes=2, k=7, multi_label=True
    )
    aucs = [roc_auc_score(queries.labels[:, c + 1], oracle[:, c]) for c in (0, 1)]
    assert found["states"]["end"]["embedding"]["roc_auc"] == pytest.approx(np.mean(aucs))
    probed = json.loads((part / "probe.json").read_text())
    assert found["unsaid_labels"] == probed["unsaid_labels"] == ["first"]
    assert np.isfinite(list(probed["states"]["end"]["embedding"].values())).all()


def test_queries_whose_neighbours_ignore_a_label_leave_it_out(make_set, tmp_path):
    shards = make_set(tmp_path / "set", task="multi-label", name="multi")  # every tenth image ignores label 0
    session = Session(arguments(make_run(tmp_path / "run", shards.path, *SMALL), "--layers", "classifier"))
    bank, queries = session.bank("end", "train"), session.bank("end")
    layer = bank.layer("embedding")
    oracle = knn_probabilities(layer, bank.labels, queries.layer("embedding"), num_classes=3, k=1, multi_label=True)
    unsaid = np.isnan(oracle[:, 0])
    assert unsaid.any() and not unsaid.all() and not np.isnan(oracle[:, 1:]).any()
    found = session.metrics(*ignoring_unsaid(queries.labels, oracle))
    known = ~unsaid & ~np.isnan(queries.labels[:, 0])
    rows = [known, np.full(len(known), True), np.full(len(known), True)]
    aucs = [roc_auc_score(queries.labels[row, c], oracle[row, c]) for c, row in enumerate(rows)]
    assert found["roc_auc"] == pytest.approx(np.mean(aucs))
    diverged = np.full((len(queries.labels), 3), 0.5)
    diverged[:, 0] = np.nan  # of a net, as reinit gives them: not left out
    assert np.isnan(list(session.metrics(queries.labels, diverged).values())).all()


def test_the_chart_says_that_the_best_pooling_is_chosen_on_its_own_images():
    def drawn(ways: list[str]) -> str:
        state = {"embedding": {"roc_auc": 0.8}, "layers": {"a": {way: {"roc_auc": 0.7} for way in ways}}}
        return knn.figure({"target": "roc_auc", "states": {"end": state}}, "title")

    assert "chosen on these images: a little too good" in drawn(["cls", "mean", "both"])
    assert "best pooling" not in drawn(["both"])


def test_the_studys_knn_has_the_starts_bank_and_a_second_softmax(run):
    flags = ("--layers", "classifier", "--k", "5")
    knn.main(arguments(run, *flags, "--study-exact"))
    found = json.loads((run / "analysis" / "some-layers" / "knn-study.json").read_text())["states"]
    session = Session(arguments(run, *flags))
    banks = {state: session.bank(state, "train") for state in ("start", "end")}
    queries = session.bank("end")
    for layer, state in (("embedding", "start"), ("classifier", "end")):
        bank = banks[state]
        oracle = KNeighborsClassifier(
            5, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
        ).fit(np.float64(bank.layer(layer)), bank.labels)
        again = np.exp(oracle.predict_proba(np.float64(queries.layer(layer))))
        expected = session.metrics(queries.labels, again / again.sum(1, keepdims=True))
        row = found["end"]["embedding"] if layer == "embedding" else found["end"]["layers"][layer]["mean"]
        assert row == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert list(found) == ["end"]


def test_half_precision_is_another_bank_near_the_whole_one(run):
    flags = ("--layers", "stem", "--split", "val")
    whole, half = (
        Session(arguments(run, *flags, "--precision", kind)).bank("end", "val").layer("stem")
        for kind in ("fp32", "bf16")
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(whole - half).max() < 0.05 * np.abs(whole).max()
