"""The scripts over a run directory, a weights file and a DeepSpeed checkpoint: what they write, and what they refuse.

The runs here are untrained: a start and an end of two seeds, in the layout that training writes.
"""

import json
import math
import shutil
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pytest
import torch
from made_runs import FAMILIES, SMALL, arguments, make_run, result

from analysis import cka, knn, l2, probe, reinit
from analysis.results import read_result
from analysis.session import Session, choose
from analysis.tokens import Reordered
from shards.shardset import ShardSet
from train.rundir import Run


def test_second_call_is_answered_and_force_works_again(run, capsys):
    flags = ("--layers", "classifier", "--out", str(run / "twice"))
    knn.main(arguments(run, *flags))
    path = run / "twice" / "knn.json"
    first = path.read_bytes()
    path.write_bytes(first + b" ")
    capsys.readouterr()
    knn.main(arguments(run, *flags))
    assert "knn.json is done already (--force works it out again)" in capsys.readouterr().out
    assert path.read_bytes() == first + b" "
    knn.main(arguments(run, *flags, "--force"))
    assert path.read_bytes() == first


def test_cka_of_a_run(run):
    cka.main(arguments(run, script="cka"))
    found = result(run, "cka")
    layers = found["sides"]["start"]
    for kind in ("whole", "minibatch"):
        for name in ("start-start", "end-start", "end-end"):
            matrix = np.array(found[kind][name])
            assert matrix.shape == (len(layers), len(layers))
            if name != "end-start":
                np.testing.assert_allclose(np.diagonal(matrix), 1)
                np.testing.assert_allclose(matrix, matrix.T)
    assert set(found["same_layer"]) == set(layers)
    assert (run / "analysis" / "cka.svg").read_text().count("<rect") > 3 * len(layers) ** 2


def test_cka_against_itself_and_on_tokens(run):
    cka.main(arguments(run, "--against", str(run), "--out", str(run / "other"), script="cka"))
    found = json.loads((run / "other" / "cka-tiny.json").read_text())
    np.testing.assert_allclose(np.diagonal(np.array(found["whole"]["end of tiny-end of tiny (other)"])), 1, atol=1e-9)
    cka.main(arguments(run, "--features", "tokens", script="cka"))
    tokens = result(run, "cka-tokens")
    assert "whole" not in tokens
    np.testing.assert_allclose(np.diagonal(np.array(tokens["minibatch"]["start-start"])), 1)
    assert tokens["images"] == 19


def test_reordered_split_is_the_split_in_another_order(tiny_set):
    split = ShardSet(tiny_set).split("train")
    order = np.random.default_rng(0).permutation(60)[:41]
    moved = Reordered(split, order)
    assert moved.num_samples == 41
    np.testing.assert_array_equal(moved.sample_ids(), split.sample_ids(order))
    np.testing.assert_array_equal(moved.labels(), split.labels(order))
    assert all(bytes(moved.read(i)) == bytes(split.read(int(place))) for i, place in enumerate(order))
    assert [moved.key(i) for i in range(41)] == [split.key(int(place)) for place in order]


def test_l2_differs_from_layer_to_layer(run):
    l2.main(arguments(run, script="l2"))
    rows = result(run, "l2")["layers"]
    values = [row["all"]["relative"] for row in rows.values()]
    assert len(set(values)) == len(values)
    assert all(value > 0 for value in values)


def test_reinit_has_its_baseline_and_plain_passes_agree(run):
    reinit.main(arguments(run, script="reinit"))
    found = result(run, "reinit")
    session = Session(arguments(run, script="reinit"))
    exchanges = {group: {key: session.state("start")[key] for key in keys} for group, keys in session.groups.items()}
    plain = reinit.exchanged_metrics(session, exchanges, reuse=False)
    assert plain.pop(None) == pytest.approx(found["baseline"])
    assert {layer: pytest.approx(row) for layer, row in found["layers"].items()} == plain


def test_rerand_is_another_result(run):
    reinit.main(arguments(run, "--to", "random", "--layers", "classifier", script="reinit"))
    found = json.loads((run / "analysis" / "some-layers" / "rerand.json").read_text())
    assert list(found["layers"]) == ["classifier"]


def test_weights_file_and_deepspeed_checkpoint_are_runs_too(run, tiny_set, tmp_path):
    session = Session(arguments(run))
    folder = tmp_path / "step-00000007"
    folder.mkdir()
    torch.save({"module": session.state("end")}, folder / "mp_rank_00_model_states.pt")
    flags = ("--shards", str(tiny_set), "--layers", "classifier", "--limit", "4", "--out")
    numbers = []
    for path, more in ((run / "weights" / "best.safetensors", ()), (folder, ("--model", SMALL[0]))):
        knn.main(arguments(path, *flags, str(tmp_path / path.stem), *more))
        numbers.append(json.loads((tmp_path / path.stem / "knn.json").read_text())["states"]["end"])
    assert [list(state["layers"]) for state in numbers] == [["classifier"], ["classifier"]]


REFUSED: dict[str, tuple[Callable[[Namespace], None], tuple[str, ...], str]] = {
    "split": (knn.main, ("--split", "tests"), r"split 'tests' does not exist in tiny; it has train, val, test"),
    "layer": (knn.main, ("--layers", "blocks.55.3"), r"unknown layer 'blocks.55.3'; nearest: blocks\.5\.3"),
    "T": (knn.main, ("--temperature", "0", "--force"), r"temperature above 0, got k=\d+, temperature=0"),
    "banks": (knn.main, ("--banks", "nowhere"), r"nowhere holds no bank of this question: there is none"),
    "probe on its own bank": (probe.main, ("--split", "train"), r"fitted on train says nothing of train"),
    "strength": (probe.main, ("--strength", "-1", "--layers", "stem"), r"must be above 0, got \[-1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_get_one_line(run, name):
    script, flags, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        script(arguments(run, *flags, script=script.__module__.removeprefix("analysis.")))


def test_run_without_a_start_is_refused_where_a_start_is_needed(tmp_path, tiny_set):
    folder = make_run(tmp_path / "bare", tiny_set, *SMALL, init=False)
    for script, name in ((l2, "l2"), (cka, "cka"), (reinit, "reinit")):
        with pytest.raises(ValueError, match=r"init\.safetensors, which training .* or give .*best\.safetensors"):
            script.main(arguments(folder, script=name))
    assert not (folder / "analysis").exists()
    knn.main(arguments(folder / "weights" / "best.safetensors", "--layers", "classifier"))
    assert list(read_result(folder / "analysis" / "some-layers" / "knn.json")["states"]) == ["end"]


def test_no_layer_named_is_refused():
    assert choose(["a", "b"], "b,a") == ["a", "b"]
    with pytest.raises(ValueError, match="--layers names no layer"):
        choose(["a"], " , ")


def test_an_analysis_of_a_part_replaces_nothing(run):
    knn.main(arguments(run, "--layers", "classifier"))
    before = {path: path.read_bytes() for path in (run / "analysis").glob("*.json")}
    for flags, folder in (
        (("--limit", "9"), "limit-9-some-layers"),
        (("--split", "val"), "split-val-some-layers"),
        (("--taps", "fine"), "fine-some-layers"),
    ):
        knn.main(arguments(run, "--layers", "classifier", *flags))
        assert (run / "analysis" / folder / "knn.json").is_file()
    assert {path: path.read_bytes() for path in (run / "analysis").glob("*.json")} == before


def test_an_analysis_of_another_set_replaces_nothing_and_one_of_a_copy_is_the_run_s_own(
    run, tmp_path, tiny_set, make_set
):
    copy, other = tmp_path / "copy", make_set(tmp_path / "other", seed=7)
    shutil.copytree(tiny_set, copy)
    base = run / "analysis" / "some-layers"
    assert Session(arguments(run, "--layers", "classifier", "--shards", str(copy))).out == base
    apart = Session(arguments(run, "--layers", "classifier", "--shards", str(other.path))).out
    assert apart.name == f"some-layers-set-{other.manifest.name}-{other.manifest.digest[:8]}"


def test_banks_of_another_run_are_of_other_weights(run, tiny_set, tmp_path):
    knn.main(arguments(run, "--layers", "classifier"))
    banks = run / "analysis" / "features"
    again = arguments(run, "--layers", "classifier", "--banks", str(banks), "--force", "--out", str(tmp_path / "o"))
    knn.main(again)
    assert not (tmp_path / "o" / "features").exists()
    other = make_run(tmp_path / "other", tiny_set, *SMALL, seeds=(2, 3))
    with pytest.raises(ValueError, match=r"holds no bank of this question: the nearest is of other weights; leave"):
        knn.main(arguments(other, "--layers", "classifier", "--banks", str(banks)))


def test_runs_of_different_sets_are_not_compared(run, tiny_set, tmp_path, make_set):
    moved = make_set(tmp_path / "set", seed=5)
    other = make_run(tmp_path / "other", moved.path, *SMALL)
    with pytest.raises(ValueError, match="of different shard sets: CKA wants the same images"):
        cka.main(arguments(run, "--against", str(other), script="cka"))


def test_a_set_without_a_test_split_names_those_it_has(tmp_path, make_set):
    run = make_run(tmp_path / "run", make_set(tmp_path / "set", test=0).path, *SMALL)
    with pytest.raises(ValueError, match="split 'test' does not exist in tiny; it has train, val"):
        knn.main(arguments(run))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), FAMILIES)
def test_every_analysis_runs_for_every_family(tmp_path, tiny_set, model, side):
    folder = make_run(tmp_path / "run", tiny_set, model, side)
    for script, name in ((knn, "knn"), (probe, "probe"), (cka, "cka"), (l2, "l2"), (reinit, "reinit")):
        script.main(arguments(folder, *(("--strength", "0.1") if name == "probe" else ()), script=name))
        found = result(folder, name)
        assert found["request"]["layers"] == list(found.get("layers") or found["request"]["layers"])
    assert len(result(folder, "cka")["sides"]["end"]) > 5


def test_the_studys_l2_is_one_number_for_all_layers(run):
    l2.main(arguments(run, "--study-exact", script="l2"))
    found = result(run, "l2-study")["layers"]
    session = Session(arguments(run, script="l2"))
    start, end = ({k: v.double().numpy() for k, v in session.state(which).items()} for which in ("start", "end"))
    by_hand = np.mean([np.sqrt(((start[key] - end[key]) ** 2).sum()) / start[key].size for key in start])
    assert len(set(found.values())) == 1
    assert found["total"] == pytest.approx(by_hand, rel=1e-5)
    assert len(found) == len(session.groups) + 1


def test_all_layers_and_both_scripts_share_one_pass_over_the_images(tiny_set, tmp_path, monkeypatch):
    """25 fine taps of a transformer and its embedding: every image is shown once a state and split."""
    folder = make_run(tmp_path / "run", tiny_set, "deit_tiny_patch16_224", 32)
    shown: list[int] = []
    build = Run.build_model

    def counted(self: Run) -> torch.nn.Module:
        model = build(self)
        model.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
        return model

    monkeypatch.setattr(Run, "build_model", counted)
    knn.main(arguments(folder, "--taps", "fine", "--batch", "20"))
    passes = 2 * (math.ceil(60 / 20) + math.ceil(19 / 20))  # start and end, over train and test
    assert len(shown) == passes
    assert len(json.loads((folder / "analysis" / "fine" / "knn.json").read_text())["states"]["end"]["layers"]) == 26
    cka.main(arguments(folder, "--taps", "fine", "--batch", "20", script="cka"))
    assert len(shown) == passes
