"""What analyses say: a table, the result as JSON, or nothing; progress in logs; flags that would do nothing."""

import importlib
import json
from pathlib import Path

import pytest
from made_runs import arguments, make_run

from analysis import cka, fid, knn, l2
from shards.progress import progress


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_set, "test_efficientnet", 32)


@pytest.mark.parametrize("script", ["knn", "l2"])
def test_json_prints_the_result_and_quiet_nothing(run: Path, script: str, capfd: pytest.CaptureFixture[str]) -> None:
    main = {"knn": knn.main, "l2": l2.main}[script]
    for again in ("--force", "--layers=stem"):  # worked out, and answered from the file
        for _ in range(2):
            main(arguments(run, "--quiet", again, script=script))
            assert capfd.readouterr() == ("", "")
            main(arguments(run, "--json", again, script=script))
            told = capfd.readouterr()
            folder = "analysis" if again == "--force" else "analysis/some-layers"
            assert not told.err
            assert json.loads(told.out) == json.loads((run / folder / f"{script}.json").read_text())


@pytest.mark.parametrize(
    ("script", "flags", "line"),
    [
        ("knn", ("--layers", "classifier"), "tiny start on train: 60/60 images"),
        ("cka", ("--features", "tokens", "--layers", "classifier"), "tiny tokens: 19/19 images"),
    ],
)
def test_progress_in_a_log_is_whole_lines(
    run: Path, script: str, flags: tuple[str, ...], line: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main = {"knn": knn.main, "cka": cka.main}[script]
    main(arguments(run, *flags, "--out", str(tmp_path), script=script))
    told = capfd.readouterr().err
    assert "\r" not in told and "\x1b" not in told and told.endswith("\n")
    assert any(each.startswith(line) for each in told.splitlines()), told


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("l2", "--split"), ("l2", "--threads"), ("l2", "--seed"), ("knn", "--seed"), ("fid", "--layers"),
        ("embeddings", "--split"), ("attention", "--layers"), ("saliency", "--banks"), ("reinit", "--taps"),
    ],
)  # fmt: skip
def test_a_flag_that_would_do_nothing_is_refused_and_not_shown(
    script: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = importlib.import_module(f"analysis.{script}").command_line()
    assert f" {flag} " not in made.whole_help()
    with pytest.raises(SystemExit):
        made.parse_args(["runs/none", flag, "1"])
    assert f"error: unknown flag {flag}" in capsys.readouterr().err


def test_the_sources_of_a_distance_may_lie_at_a_url(run: Path, tiny_set: Path) -> None:
    fid.main(arguments(run, "--source", tiny_set.as_uri(), "--quiet", "--out", str(run / "url"), script="fid"))
    found = json.loads((run / "url" / "fid-tiny.json").read_text())
    assert found["fid"] == pytest.approx(0, abs=1e-6)


def test_a_gpu_that_is_not_there_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--device cuda: torch sees no GPU here; \./launch\.sh doctor says more"):
        knn.main(arguments(run, "--device", "cuda"))
    with pytest.raises(SystemExit):
        arguments(run, "--device", "tpu")


def test_a_mistake_before_any_progress_leaves_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(7, "checking", "shard"):
        pass  # an error ends it before the first shard
    assert capfd.readouterr().err == ""
