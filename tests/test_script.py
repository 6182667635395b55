"""The first import of every script: Ctrl-C while the rest is imported, and a Python without the packages."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from parsers import ROOT, scripts

ALL = [*scripts(), "shards/__main__.py"]
HEAVY = ("numpy", "torch", "cv2", "pydantic", "timm", "matplotlib", "xxhash", "tqdm", "fsspec")


@pytest.mark.parametrize("script", ALL)
def test_the_first_import_is_the_one_that_is_interrupted_cleanly(script: str) -> None:
    text = (ROOT / script).read_text()
    first = next(node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.ImportFrom) and first.module in ("shards.script", "analysis.launching")
    # All that a bare Python shows of it is this line: nothing of ours has been imported, or can be.
    assert text.splitlines()[first.lineno - 1].endswith("# no such module? source .venv/bin/activate")


def stubs(folder: Path) -> Path:
    """Modules that say that they are imported and never end."""
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"print('importing {name}', flush=True)\nimport time\ntime.sleep(600)\n")
    return folder


@pytest.mark.parametrize("script", [script for script in ALL if script.startswith(("analysis", "prep", "train/run"))])
def test_ctrl_c_while_a_script_imports_ends_it_by_the_signal_without_a_word(script: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), "runs/none"],
        env=os.environ | {"PYTHONPATH": str(stubs(tmp_path))}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("importing")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and told == ""


def bare(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python that knows no installed package, as the system's."""
    return subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_python_without_the_packages_is_told_where_they_are() -> None:
    for command in (["-m", "shards", "info", "x"], ["-m", "prep.make_shards"]):
        done = bare(*command)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert (
            "has none of the packages: ./launch.sh setup makes an environment that has, and source .venv" in done.stderr
        )
    for script in ("prep/make_shards.py", "analysis/knn.py"):
        assert "# no such module? source .venv/bin/activate" in bare(script).stderr


def test_importing_a_script_changes_nothing_for_a_notebook() -> None:
    program = "import signal, prep.make_shards; assert signal.getsignal(2) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, or in the background of a shell script."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "prep/make_shards.py")], env=os.environ | {"PYTHONPATH": str(stubs(tmp_path))},
        text=True, stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().startswith("importing")
    ignored = int(Path(f"/proc/{process.pid}/status").read_text().split("SigIgn:")[1].split()[0], 16)
    process.kill()
    process.communicate()
    assert ignored >> signal.SIGINT - 1 & 1
