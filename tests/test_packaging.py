"""Wheel and sdist: built from a clean copy, installed elsewhere, run from outside the repository."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, made from the sdist, and one sdist of the tracked files as they are now."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    committer = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for git in (["init", "-q"], ["add", "-A"], [*committer, "commit", "-q", "-m", "copy"]):
        subprocess.run(["git", *git], cwd=copy, check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dist


def test_the_wheel_holds_the_four_rooms_and_their_data_alone(built: Path):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert rooms == {"prep", "shards", "train", "analysis"}
    for wanted in (
        "shards/FORMAT.md",
        "shards/pixels.c",
        "analysis/grams.c",
        "train/ds_config.json",
        "prep/sources/ddsm.py",
    ):
        assert wanted in names
    sources = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert sources <= set(names)


def test_the_sdist_holds_what_a_build_and_a_test_run_need(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {"LICENSE", "launch.sh", "constraints.txt", "ds_config.json", "tests/test_packaging.py"} <= names


def test_the_wheel_runs_from_outside_the_repository(built: Path, tmp_path: Path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # what pip does with a pure wheel
    code = (
        "import shards, train.ds_settings as settings;"
        f"assert shards.__file__.startswith({str(tmp_path)!r}), shards.__file__;"
        "assert settings.read().train_batch_size == 64"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    for module in ("prep.make_shards", "shards", "train.run"):
        command = [sys.executable, "-m", module, "--help"]
        helped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert helped.returncode == 0, helped.stderr
        assert "usage:" in helped.stdout


def test_the_image_belongs_to_a_user_who_may_write_where_work_is_kept():
    """A builder makes a missing mount point and its parents root's, so they are made before, for the user."""
    lines = (ROOT / "containers" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    made = next(n for n, line in enumerate(lines) if line.startswith("RUN useradd"))
    user = next(n for n, line in enumerate(lines) if line.startswith("USER 1000"))
    mounts = [n for n, line in enumerate(lines) if "target=/home/medshard/" in line]
    owned = lines[made].split("install -d -o medshard -g medshard ")[1].split()
    assert owned == [f"/home/medshard/{name}" for name in (".cache", ".cache/pip", "medshard")]
    assert made < user < min(mounts) and not any(line.startswith("USER") for line in lines[user + 1 :])
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-bookworm$", "\n".join(lines), re.MULTILINE)


def test_images_take_named_parts_of_the_repository_alone():
    """Data, runs, private folders and a forgotten .env stay outside, whatever they are called."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert first == "*" and named <= top and {"prep", "shards", "train", "analysis", "launch.sh"} <= named
    recipe = (ROOT / "containers" / "apptainer.def").read_text().split("%files\n")[1].split("\n\n")[0]
    copied = [line.split() for line in recipe.splitlines()]
    assert all(place == f"/opt/medshard/{name}" and name in top for name, place in copied)
