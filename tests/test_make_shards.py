"""The command lines of prep: what they print, and how they end."""

import subprocess
import sys
from pathlib import Path

import pytest

from prep.make_shards import main, parse_args
from prep.phantoms import SALT_NAME, draw_phantoms

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
