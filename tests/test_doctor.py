"""./launch.sh doctor: a line a finding, and the exit code."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from train import doctor


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = doctor.main(doctor.parse_args(list(argv)))
    return code, capsys.readouterr().out


def test_every_line_has_a_mark_and_advice_where_it_is_not_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, out = run(capsys, "--out", str(tmp_path / "runs"), "--json")
    findings = json.loads(out)
    names = [each["name"] for each in findings]
    for wanted in ("Python", "machine", "disk", "shared memory", "open files", "torch", "DALI", "DeepSpeed", "network"):
        assert wanted in names
    assert all(bool(each["advice"]) == (each["state"] != "good") for each in findings)
    assert code == any(each["state"] == "bad" for each in findings)
    assert not (tmp_path / "runs").exists()


def test_a_node_that_does_not_answer_is_bad(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not doctor.reaches("127.0.0.1", closed.getsockname()[1])
    (tmp_path / "hosts").write_text("# nodes\nnode-that-is-not.invalid slots=8\n")
    *_, last = doctor.nodes(tmp_path / "hosts")
    assert last.state == "bad"
    assert last.name == "node node-that-is-not.invalid"


def test_a_node_whose_ssh_hangs_is_bad(monkeypatch: pytest.MonkeyPatch):
    def hangs(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor, "reaches", lambda *_: True)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor.subprocess, "run", hangs)
    found = doctor.node("node1")
    assert (found.state, found.text) == ("bad", "ssh does not end within 30 s")


def test_hostfile_names():
    assert doctor.hosts_of("a slots=2\n\n# b slots=1\nc # d\n") == ["a", "c"]


def test_an_option_of_ssh_is_no_node(tmp_path: Path):
    (tmp_path / "hosts").write_text(f"-oProxyCommand=touch${{IFS}}{tmp_path}/ran slots=1\n")
    with pytest.raises(ValueError, match=r"'-oProxyCommand=.*' is no name of a machine; .*node1 slots=8"):
        list(doctor.nodes(tmp_path / "hosts"))


def test_missing_hostfile(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no hostfile .*hosts: a line a node, as in: node1 slots=8"):
        list(doctor.nodes(tmp_path / "hosts"))


@pytest.mark.parametrize(("soft", "state"), [(1024, "warn"), (65536, "good"), (-1, "good")])
def test_open_files(soft: int, state: str):
    assert doctor.open_files(soft, 65536).state == state


def test_small_shared_memory_names_the_container_flag(monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"total": 64 * 1024**2})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "--shm-size" in doctor.shared_memory("/tmp").advice


def test_what_dali_decodes_is_tried(monkeypatch: pytest.MonkeyPatch):
    (found,) = doctor.dali()
    assert (found.state, found.text.partition(" decodes ")[2]) == ("good", "JPEG, PNG, TIFF, JPEG 2000")
    monkeypatch.setattr(doctor, "DECODED", {"JPEG": ".jpg", "BMP": ".bmp", "Sun raster": ".ras"})
    (found,) = doctor.dali()
    assert found.state == "warn" and found.text.endswith(", not Sun raster") and "--executor host" in found.advice


def test_compiled_operators_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    (found,) = doctor.deepspeed()
    assert found.text.endswith("the first start compiles for about a minute")
    (tmp_path / "py311_cpu" / "fused_adam").mkdir(parents=True)
    (tmp_path / "py311_cpu" / "fused_adam" / "fused_adam.so").touch()
    (found,) = doctor.deepspeed()
    assert found.text.endswith("compiled before: fused_adam")


def test_a_package_that_does_not_load_is_a_finding():
    def broken():
        raise ImportError("libcudart.so.13: cannot open\nshared object file")
        yield

    (found,) = doctor.guarded(broken)
    assert found.state == "bad"
    assert "libcudart.so.13: cannot open shared object file" in found.text
