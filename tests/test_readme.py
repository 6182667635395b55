"""The README's commands run as they stand, on phantoms: only what wants a network or hours is made small."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SMALL = "--image-size 32 --epochs 1 --global-batch 8"
CHANGES = (
    (r"--model resnet50\.tv_in1k --start \w+", f"--model resnet18 --start ri {SMALL}"),
    (r"--name ddsm-ri", "--name ddsm-ri --seed 1"),  # both are RI here, and a report refuses twins
    (r"(prep/phantoms\.py [^#\n]*)", r"\1 --num-images 60 --size 64 "),
    (r"(analysis/(?!report|l2)\w+\.py \S+)", r"\1 --limit 24"),
    (r"(prep/make_shards\.py [^#\n]*)", r"\1 --short-side 48 "),
)  # fmt: skip


def commands() -> list[str]:
    """The lines under "Start here", in order."""
    text = (ROOT / "README.md").read_text()
    part = text[text.index("## Start here") : text.index("## The house")]
    lines = [
        line.split(" #")[0].split("  →")[0].strip() for block in BLOCK.findall(part) for line in block.splitlines()
    ]
    return [line for line in lines if line]


def test_every_script_that_the_readme_names_is_there():
    found = re.findall(r"python ((?:prep|analysis|benchmarks)/\w+\.py)", (ROOT / "README.md").read_text())
    assert len(found) > 10
    for script in found:
        assert (ROOT / script).is_file(), script


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_the_figures_are_those_of_the_benchmarks():
    readme, benchmarks = (ROOT / "README.md").read_text(), (ROOT / "benchmarks" / "README.md").read_text()
    known = set(numbers(benchmarks + "".join(path.read_text() for path in (ROOT / "docs" / "decisions").glob("0*.md"))))
    tables = re.findall(r"\|---.*\|\n((?:\|.*\n)+)", readme[readme.index("## Measured") :])
    measured, peers, study = ([row.strip("|").split("|") for row in table.splitlines()] for table in tables)
    for what, *cells, command in measured + study:
        if "python" in command or "launch.sh" in command:
            assert not [number for number in numbers(" ".join(cells)) if number not in known], what
    rates = {tuple(numbers(" ".join(re.findall(r"(\S+) \(", row)))) for row in re.findall(r"\|.*\|", benchmarks)}
    for what, *cells in peers:
        assert tuple(numbers(" ".join(cells))) in rates, what


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run(tmp_path: Path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    for folder in ("prep", "shards", "train", "analysis"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for line in commands():
        small = line.replace("./launch.sh", str(ROOT / "launch.sh"))
        for pattern, text in CHANGES:
            small = re.sub(pattern, text, small)
        done = subprocess.run(
            small, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        if "--resume" in line:  # the run has ended: it says so, and has nothing to do
            assert "ended" in done.stdout + done.stderr or done.returncode == 0, done.stderr
            continue
        assert done.returncode == 0, f"{line}\n{small}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert (tmp_path / "runs" / "report.html").is_file() or list(tmp_path.rglob("*.html"))
    shutil.rmtree(tmp_path / "runs")
