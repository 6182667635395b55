"""The house keeps its shape: arrows between rooms, names that shadow nothing, a tree that README shows."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("prep", "shards", "train", "analysis")
ARROWS = {"prep": {"shards"}, "shards": set(), "train": {"shards"}, "analysis": {"train", "shards"}}
KNOWS_NOTHING_OF = {
    "prep": {"torch", "torchvision", "timm", "nvidia", "deepspeed"},
    "shards": {"timm", "deepspeed"},
    "train": {"pydicom", "h5py"},
    "analysis": {"deepspeed"},
}
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all imports of a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: relative import; the house imports absolutely"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    names = imported(path)
    strangers = (names & set(ROOMS)) - ARROWS[room] - {room}
    assert not strangers, f"{room} may import {sorted(ARROWS[room])}, not {sorted(strangers)}"
    assert not names & KNOWS_NOTHING_OF[room], f"{room} knows nothing of {sorted(names & KNOWS_NOTHING_OF[room])}"


def test_no_module_shadows_another() -> None:
    # A script's own folder comes first on sys.path, so `train/queue.py` would be everybody's `queue`.
    installed = {name for name in importlib.metadata.packages_distributions() if name not in ROOMS} | set(
        sys.stdlib_module_names
    )
    taken = [str(path.relative_to(ROOT)) for path in MODULES if path.stem in installed]
    assert not taken, f"rename {taken}: they bear the names of standard or installed modules"


def test_no_star_imports() -> None:
    stars = [
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert not stars


def test_readme_tree_is_the_tree() -> None:
    """Every file of the rooms has its line in README's tree, and every line has its file."""
    tree = re.search(r"```text\n(medshard/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "README.md has no ```text tree that starts with medshard/"
    shown, folders = set(), {0: ""}
    for line in tree.group(1).splitlines()[1:]:
        match = re.match(r"^((?:[│├└─\s])*)([\w.\-/]+)", line)
        if not match:
            continue
        depth, name = len(match.group(1)) // 4, match.group(2)
        path = folders.get(depth - 1, "") + name if depth > 1 else name
        if name.endswith("/"):
            folders[depth] = path
        shown.add(path)
    files = {str(path.relative_to(ROOT)) for path in MODULES if path.name != "__init__.py"}
    in_rooms = {path for path in shown if path.split("/")[0] in ROOMS and path.endswith(".py")}
    assert files - shown == set(), "files without a line in README's tree"
    assert in_rooms - files == set(), "lines of README's tree without a file"


def test_scripts_say_how_to_run_them() -> None:
    scripts = [path for path in MODULES if "__main__" in path.read_text() and path.name != "__main__.py"]
    silent = [str(p.relative_to(ROOT)) for p in scripts if not (ast.get_docstring(ast.parse(p.read_text())) or "")]
    assert scripts and not silent
