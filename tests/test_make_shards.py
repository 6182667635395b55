"""The command lines of prep: what they print, and how they end."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from prep.make_shards import main, parse_args
from prep.phantoms import SALT_NAME, draw_phantoms
from shards.checking import check_set
from shards.manifest import Manifest
from shards.words import counted

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"prep/{script}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "IDRiD"
    draw_phantoms("IDRiD", folder, 40, size=64, quiet=True)
    return folder


def test_from_phantoms_to_a_checked_set(tmp_path: Path) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "set")
    drawn = run("phantoms", "--dataset", "DDSM", "--out", raw, "--num-images", "24", "--size", "64", "--workers", "1")
    assert drawn.returncode == 0 and "make_shards.py --dataset DDSM" in drawn.stdout
    command = ("--dataset", "DDSM", "--raw", raw, "--out", out, "--short-side", "48", "--workers", "2")
    made = run("make_shards", *command, "--salt", str(Path(raw) / SALT_NAME))
    assert made.returncode == 0, made.stderr
    assert "DDSM (phantoms)" in made.stdout and "24 images" in made.stdout and "0 left out" in made.stdout
    again = run("make_shards", *command)
    assert again.returncode == 0 and "already done, nothing to do" in again.stdout
    assert run("check_shards", out).returncode == 0
    shard = next(Path(out).glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    checked = run("check_shards", out)
    assert checked.returncode != 0 and shard.name in checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "isic"), "error: unknown dataset 'isic'"),
        (
            ("--dataset", "DDSM", "--raw", "/nowhere/raw"),
            "error: DDSM: there is no folder /nowhere/raw. Get the dataset from",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run("make_shards", *arguments, "--out", str(tmp_path / "set"))
    assert ended.returncode == 2
    assert ended.stderr.startswith(message) and ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_dry_run_tells_and_writes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(parse_args(["--dataset", "IDRiD", "--raw", str(raw), "--out", str(tmp_path / "set"), "--dry-run"]))
    text = capsys.readouterr().out
    assert "nothing written" in text and "no DR" in text and "about" in text and "IDRiD (phantoms)" in text
    assert not list(tmp_path.iterdir())


def test_study_split_is_refused_where_the_study_had_none(raw: Path, tmp_path: Path) -> None:
    args = parse_args(["--dataset", "IDRiD", "--raw", str(raw), "--out", str(tmp_path / "set"), "--split", "study"])
    with pytest.raises(ValueError, match="the published study did not use IDRiD"):
        main(args)


def test_the_studys_shared_rows_stand_twice_only_under_study_exact(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    draw_phantoms("CheXpert", raw, 60, size=64, quiet=True)
    header, *rows = (raw / "train.csv").read_text().splitlines()
    (raw / "train.csv").write_text("\n".join([header, *sorted(rows)]))  # by patient, as the original is
    base = ["--dataset", "CheXpert", "--raw", str(raw), "--short-side", "32", "--workers", "1", "--quiet"]
    for mode in ("study", "study-exact"):
        main(parse_args([*base, "--out", str(tmp_path / mode), "--split", mode]))
    kept, exact = Manifest.read(tmp_path / "study"), Manifest.read(tmp_path / "study-exact")
    gained = {name: exact.splits[name].samples - kept.splits[name].samples for name in ("train", "val", "test")}
    assert gained == {"train": 1, "val": 1, "test": 0}
    assert "2 images stand in two splits each, as in the published study" in exact.warnings
    assert any("images stand pixel by pixel in more than one split" in warning for warning in exact.warnings)
    shared = exact.grouping.intersections
    assert shared["train-test"] >= 1 and shared["val-test"] >= 1
    assert f"{counted(shared['val-test'], 'group')} (patient) in both splits of val-test" in exact.warnings


def test_the_studys_split_tells_how_many_lesions_leak_and_a_cached_one_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    draw_phantoms("ISIC2019", raw, 60, size=64, quiet=True)
    table = next(raw.glob("*Metadata*.csv"))
    with table.open() as file:
        names = [row["image"] for row in csv.DictReader(file)]
    table.write_text("image,lesion_id\n" + "".join(f"{name},lesion{n // 4}\n" for n, name in enumerate(names)))
    base = ["--dataset", "ISIC2019", "--raw", str(raw), "--short-side", "32", "--split", "study", "--dry-run"]
    main(parse_args([*base, "--out", str(tmp_path / "set")]))
    said = capsys.readouterr().out
    assert "groups (lesion) in both splits of train-" in said
    (raw / "val_ids.json").write_text("[0, 1, 2, 3]")
    main(parse_args([*base, "--out", str(tmp_path / "set")]))
    said = capsys.readouterr().out
    assert "val         2 images" in said and "test        2 images" in said


def test_folds_come_with_the_set(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--dataset", "IDRiD", "--raw", str(raw), "--out", str(tmp_path / "set"), "--short-side", "32"]
    with pytest.raises(ValueError, match="--folds 1 is outside 2"):
        main(parse_args([*base, "--folds", "1", "--keep-test"]))
    assert not (tmp_path / "set").exists()
    main(parse_args([*base, "--workers", "1"]))
    digest = Manifest.read(tmp_path / "set").digest
    main(parse_args([*base, "--folds", "3", "--keep-test"]))  # the set is there: only the files are made
    assert "fold-2-of-3-seed-0-test-kept: groups shared: train-val 0" in capsys.readouterr().out
    assert len(list((tmp_path / "set" / "splits").glob("*.csv"))) == 3
    assert Manifest.read(tmp_path / "set").digest == digest and check_set(tmp_path / "set") == []


def test_keep_test_alone_is_told() -> None:
    with pytest.raises(ValueError, match="--keep-test is of the split files of --folds or --repeats"):
        main(parse_args(["--dataset", "IDRiD", "--keep-test", "--dry-run"]))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--dataset DDSM --table x.csv", "--table is of --dataset csv; DDSM has its own tables"),
        ("--dataset DDSM --channels 1", "--channels is of --dataset csv"),
        (
            "--dataset Camelyon-slides --name x",
            "--name is of --dataset csv or slides; this set is called",
        ),
        ("--dataset csv --tile-size 224", "--tile-size cuts whole slides; csv is none"),
        ("--dataset DDSM --format png --quality 80", "--quality is of --format jpeg, not of png"),
        ("--dataset DDSM --format raw --chroma 4:4:4", "--chroma is of --format jpeg, not of raw"),
        ("--dataset DDSM --split study --shares .6 .2 .2", "--shares deals samples; --split study does not"),
        ("--dataset DDSM --split-file s.csv --shares .6 .2 .2", "--shares deals samples; --split-file does not"),
        ("--dataset DDSM --split random --split-file s.csv", "--split and --split-file exclude each other"),
        ("--dataset DDSM --metadata age=years", "--metadata FIELD=COLUMN is of --dataset csv; of DDSM name the fields"),
        ("--dataset DDSM --dry-run --json", "--json tells of a finished set; --dry-run makes none"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_args(flags.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and told in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset slides --name mine --tile-size 224",
        "--dataset csv --name mine --table t.csv --metadata age=years",
        "--dataset DDSM --format png --quality 95",
        "--dataset DDSM --split none --shares .6 .2 .2 --repeats 3",
        "--dataset DDSM --split study --shares .7 .15 .15",  # the default
        "--dataset DSDM --table x.csv",
    ],
)
def test_flags_that_do_something_are_taken(flags: str) -> None:
    parse_args(flags.split())


def test_folds_are_told_before_anything_is_made(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--dataset", "IDRiD", "--raw", str(raw), "--out", str(tmp_path / "set")]
    for more in ([], ["--dry-run"]):
        with pytest.raises(ValueError, match="--folds 41 needs 41 groups, there are 40, and a group is never divided"):
            main(parse_args([*base, "--folds", "41", *more]))
        assert not list(tmp_path.iterdir())
    main(parse_args([*base, "--folds", "4", "--dry-run"]))
    assert "split file fold-3-of-4-seed-0: train 20, val 10, test 10 images, whole groups" in capsys.readouterr().out
    main(parse_args([*base, "--repeats", "12", "--dry-run"]))
    assert "and 2 more split files" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
