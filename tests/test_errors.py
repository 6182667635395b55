"""How scripts end: a line for what the system refuses. Run: pytest tests/test_errors.py"""

from shards.script import run_cli

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shards.errors import NEXT_STEPS, first_line, in_words

ROOT = Path(__file__).resolve().parents[1]


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("number", sorted(NEXT_STEPS), ids=errno.errorcode.get)
def test_the_systems_refusals_say_where_and_what_to_do(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(raising(OSError(number, os.strerror(number), "data/set")))
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line == f"error: data/set: {os.strerror(number)}: {NEXT_STEPS[number]}\n" and "Errno" not in line


def test_errors_of_ours_and_those_without_a_place_keep_their_words() -> None:
    assert in_words(ValueError("label 7 is outside")) == "label 7 is outside"
    assert in_words(OSError("no server")) == "no server"
    assert in_words(OSError(errno.ENOSPC, "No space left on device")).startswith("No space left on device: free some")


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_cli(raising(KeyboardInterrupt()))
    assert ended.value.code == 130 and capsys.readouterr().err == "\nstopped; run the same command to go on\n"


def told(tiny_set: Path, output: str) -> subprocess.CompletedProcess[str]:
    line = f"exec {sys.executable} -m shards info {tiny_set} {output}"
    return subprocess.run(["bash", "-c", line], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)


def test_a_full_disk_under_the_output_is_one_line(tiny_set: Path) -> None:
    done = told(tiny_set, "> /dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "No space left on device: free some space" in done.stderr


def test_a_closed_output_is_no_error(tiny_set: Path) -> None:
    done = told(tiny_set, ">&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_cannot_be_made_is_told_with_its_place(tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "set"
    command = [sys.executable, "-m", "shards", "reshard", str(tiny_set), str(out), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'file'}") and "choose another place" in done.stderr


def test_a_banks_room_is_taken_before_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a write into a mapped hole ends the process by SIGBUS, without a word."""
    from analysis import banks

    path = tmp_path / "features.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1 << 20,))
    banks._reserve(path)
    assert path.stat().st_blocks * 512 >= path.stat().st_size

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        banks._reserve(path)
    assert in_words(caught.value) == f"{path}: No space left on device: {NEXT_STEPS[errno.ENOSPC]}"


def test_a_missing_folder_for_temporary_files_is_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path / "none")}
    command = [str(ROOT / "launch.sh"), "train", "--shards", "x"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"error: TMPDIR={tmp_path / 'none'} is no folder that can be written to: name another"
    )


def test_the_first_line_of_an_error_is_its_kind_where_it_has_no_text() -> None:
    assert first_line(RuntimeError("\n  CUDA error: x\nCompile with …")) == "CUDA error: x"
    assert first_line(OSError()) == "OSError" and first_line(AssertionError(" \n")) == "AssertionError"
    assert first_line(ValueError("long" * 100), 8) == "longlong"


def test_what_c_code_makes_of_ctrl_c_is_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """torch turns an interrupt in the midst of a storage into a ValueError about shapes."""

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(SystemExit) as left:
        run_cli(main)
    assert left.value.code == 130 and "stopped" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
