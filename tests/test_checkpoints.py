"""Checkpoints on disk: sealed, found, damaged, pruned. Run: pytest tests/test_checkpoints.py"""

from pathlib import Path

import pytest

from train import checkpoints


def write(folder: Path, step: int, text: str = "weights") -> Path:
    part = folder / f"{checkpoints.tag_of(step)}{checkpoints.PART}"
    (part / "inner").mkdir(parents=True)
    (part / "model.pt").write_text(f"{text} {step}")
    (part / "inner" / "optimizer.pt").write_text("moments")
    return checkpoints.seal(part, {"step": step, "best": 0.1 + 0.2}, world=2, stage=1)


def test_a_sealed_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 12)
    found, damaged = checkpoints.newest(tmp_path)
    assert found == checkpoints.Checkpoint(path, 2, 1, {"step": 12, "best": 0.1 + 0.2})
    assert damaged == []
    assert (tmp_path / "latest").read_text() == "step-00000012"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "no state", "bad state"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 12)
    if damage == "changed":
        (path / "model.pt").write_text("weightz 12")
    elif damage == "cut":
        (path / "model.pt").write_text("")
    elif damage == "missing":
        (path / "inner" / "optimizer.pt").unlink()
    elif damage == "no state":
        (path / checkpoints.STATE_FILE).unlink()
    else:
        (path / checkpoints.STATE_FILE).write_text('{"format"')
    found, damaged = checkpoints.newest(tmp_path)
    assert found is not None and found.state["step"] == 3
    assert len(damaged) == 1 and "step-00000012" in damaged[0]


def test_an_interrupted_writer_leaves_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, 3)
    part = tmp_path / f"step-00000012{checkpoints.PART}"
    part.mkdir()
    (part / "model.pt").write_text("half")
    found, damaged = checkpoints.newest(tmp_path)
    assert found is not None and (found.state["step"], damaged) == (3, [])
    checkpoints.prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003"]


def test_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000011"]
    assert checkpoints.newest(tmp_path / "nothing") == (None, [])
