"""The pages build without a warning: every link between them, and to files of the repository, leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards.transforms import PRESETS

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"```.*?```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
PAGES = sorted(path for path in ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))


def test_pages_build(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page: Path):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_code_of_extending_runs(tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert len(blocks) >= 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_studys_files_stands_on_its_page():
    operators = (ROOT / "train" / "study_transforms.py").read_text()
    code, page = (ROOT / "train" / "study_params.py").read_text() + operators, (ROOT / "docs" / "params.md").read_text()
    known = set(re.findall(r'\.(?:get|table)\(\s*"(\w+)"', code))
    transforms = code[code.index("PARAMETERS: dict") : code.index("def operators")]
    known |= set(re.findall(r'"(\w+)"', transforms))
    known -= {"WORLD_SIZE", "out", "Normalize"}  # no keys of the study
    assert len(known) > 100
    assert not [key for key in sorted(known) if not re.search(rf"[`.]{key}\b", page)]


QUOTED = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
LINES = QUOTED.findall((ROOT / "docs" / "troubleshooting.md").read_text())
SOURCES = "".join(
    path.read_text() for room in ("prep", "shards", "train", "analysis") for path in sorted((ROOT / room).rglob("*.py"))
) + (ROOT / "launch.sh").read_text()  # fmt: skip
JOINED = re.sub(r'"\s*\n\s*f?"', "", SOURCES)  # texts that the line length broke in two


@pytest.mark.parametrize("line", LINES)
def test_troubleshooting_quotes_real_lines(line: str):
    for part in line.split("…"):
        assert part.strip(" ,.:;") in JOINED


def test_every_preset_has_its_row_and_its_sheet():
    page = (ROOT / "docs" / "augmentation.md").read_text()
    for preset in PRESETS:
        assert f"| `{preset}` |" in page and f"](view-{preset}.png)" in page, preset


DOCKERS = {"build-arg", "user", "gpus", "rm", "shm-size", "nv", "bind"}  # and apptainer's
APPTAINERS = {"fakeroot", "userns"}
OTHERS = (
    DOCKERS
    | APPTAINERS
    | {"target", "no-deps", "disable-pip", "osv-url", "nproc_per_node", "signal", "batch", "exclusive"}
)


def test_every_flag_that_a_page_names_is_one_of_ours():
    code = SOURCES + "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    fields = set(re.findall(r"^    (\w+): ", code, re.MULTILINE))
    for page in [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "shards" / "FORMAT.md"]:
        text = page.read_text().split("## Flags of its command line")[0]  # in params.md: the study's
        for flag in [] if page.name == "CHANGELOG.md" else re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]+)", text):
            ours = f'"--{flag}"' in code or flag.replace("-", "_").removeprefix("no_") in fields
            assert ours or flag in OTHERS, f"{page.name}: --{flag}"
