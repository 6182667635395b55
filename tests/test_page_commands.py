"""The commands of the pages run as they stand, on phantoms; nets, images and epochs alone are small.

Left out are those that want another machine, a store or another program: `ELSEWHERE`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
ELSEWHERE = re.compile(
    r"docker|apptainer|medshard train|aws |printf|HOSTFILE=|pip |awk |elpv|s3://|--on slurm|sbatch --nodes 4 .* --time"
    r"|benchmarks/|launch\.sh demo|runs/NAME"
)
CHANGES = (
    (r"launch\.sh train …", "launch.sh train --shards data/shards/DDSM"),
    (r" …", ""),
    (r" /data/", " data/"),
    (r"raw/pcam", "raw/Camelyon"),
    (r"--raw FOLDER --table FOLDER", "--raw data/raw/csv --table data/raw/csv"),
    (r"--raw FOLDER", "--raw data/raw/Camelyon-slides"),
    (r"shards/mine --display", "shards/deep --display"),  # a window wants 16 bits
    (r"\[224, 96\]", "[64, 32]"),
    (r"figure\.toml --parallel", "phantoms.toml --parallel"),
    (r"studies/idrid/\{.*\}", "studies/phantoms/lr0.001-0"),
    (r"report\.py examples/\S+", "report.py runs/studies/phantoms/lr0.001-0"),  # that study's runs are all RI
    (r"studies/idrid\.toml", "studies/phantoms.toml"),
)
RAW = ("APTOS2019", "Camelyon", "Camelyon-slides", "CheXpert", "DDSM", "IDRiD", "ISIC2019", "csv")
SETS = {
    "DDSM": "--dataset DDSM",
    "mine": "--dataset csv --label-columns label --group-column patient",
    "deep": "--dataset csv --label-columns label --group-column patient --channels 1 --bits 16 --format png",
}  # fmt: skip
LAUNCH = f"""#!/usr/bin/env bash
small=(--model test_vit --start ri --image-size 64 --epochs 1 --global-batch 8 --warmup-steps 1 --finder-resolution 2)
[[ " $* " == *" --name "* ]] || small+=(--name "run-$$")
case " $* " in
  *" --weights "*) small=(--image-size 64 --epochs 1) ;;
  *" --resume "*|*" --test "*|*" sbatch "*|" doctor ") small=() ;;
esac
exec {ROOT}/launch.sh "$@" "${{small[@]}}"
"""
SQUARE = {"Resize": {"apply": True, "height": 64, "width": 64}, "Normalize": True}
PARAMS = {
    "dataset_params": {"dataset": "APTOS2019", **{f"{part}_transforms": SQUARE for part in ("train", "val", "test")}},
    "dataloader_params": {"trainloader": {"batch_size": 8, "num_workers": 2, "shuffle": True}},
    "model_params": {"backbone_type": "resnet50"}, "training_params": {"model_name": "mine", "epochs": 1},
}  # fmt: skip


def script(page: Path) -> str:
    """The page's commands as one shell script."""
    lines = (re.sub(r"\\\n\s*", "", "".join(BLOCK.findall(page.read_text())))).splitlines()
    text = "\n".join(line for line in lines if line and not ELSEWHERE.search(line))
    for pattern, new in CHANGES:
        text = re.sub(pattern, new, text)
    return text


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if script(page)]


def run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(["bash", "-exc", command], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw phantoms, and sets of some of them."""
    place = tmp_path_factory.mktemp("library")
    for room in ("prep", "shards"):
        (place / room).symlink_to(ROOT / room)
    for name in RAW:
        size = "" if name in ("Camelyon", "Camelyon-slides") else "--size 120"
        number = 10 if name == "Camelyon-slides" else 60
        run(f"python prep/phantoms.py --dataset {name} --out data/raw/{name} --num-images {number} {size}", place)
    for name, flags in SETS.items():
        raw = "csv" if name in ("mine", "deep") else name
        run(f"python prep/make_shards.py {flags} --out data/shards/{name} --raw data/raw/{raw}", place)
    return place


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, library: Path, tmp_path: Path):
    for room in ("prep", "shards", "train", "analysis"):
        (tmp_path / room).symlink_to(ROOT / room)
    study = (ROOT / "examples" / "studies" / "phantoms.toml").read_text()  # places in it are the project's
    (tmp_path / "examples" / "studies").mkdir(parents=True)
    (tmp_path / "examples" / "studies" / "phantoms.toml").write_text(study.replace("data/", f"{tmp_path}/data/"))
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "raw").symlink_to(library / "data" / "raw")
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    (tmp_path / "launch.sh").write_text(LAUNCH)
    (tmp_path / "launch.sh").chmod(0o755)
    commands = script(page)
    for name in SETS:
        if not re.search(rf"make_shards\.py .*(--dataset|--name) {name}\b(?!.*--dry-run)", commands):
            for folder in (name, f"{name}.private"):
                (tmp_path / "data" / "shards" / folder).symlink_to(library / "data" / "shards" / folder)
    run(commands, tmp_path)


def test_the_pages_have_commands():
    assert len(PAGES) > 8
    for page in PAGES:
        assert "FOLDER" not in script(page) and "…" not in script(page), page
