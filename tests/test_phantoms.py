"""Phantoms: the exact layouts, reproducible, and the label nowhere but in the lesions."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import prep.phantoms
from prep.convert import convert
from prep.images import PixelOptions
from prep.phantoms import LAYOUTS, SALT_NAME, draw_phantoms, main, parse_args
from prep.planning import ConvertOptions
from prep.records import RawDataset
from prep.sources import DATASETS, find_dataset
from prep.sources.own_table import TableColumns, table_dataset
from shards.progress import progress


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    draw_phantoms("DDSM", tmp_path / "a", 12, seed=3, size=96, quiet=True)
    draw_phantoms("DDSM", tmp_path / "b", 12, seed=3, size=96, workers=2, quiet=True)
    draw_phantoms("DDSM", tmp_path / "c", 12, seed=4, size=96, quiet=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def reader_of(name: str, root: Path) -> RawDataset:
    if name == "csv":
        return table_dataset("mine", TableColumns(root / "labels.csv", group="patient"))
    return find_dataset(name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_read_by_its_reader_and_says_phantom(name: str, tmp_path: Path) -> None:
    tiles = name == "Camelyon-slides"  # many from each slide, where a slide is larger than they are
    draw_phantoms(name, tmp_path / "raw", 30, size=1024 if tiles else 96, quiet=True)
    assert "phantom" in (tmp_path / "raw" / "PHANTOM.txt").read_text()
    dataset = reader_of(name, tmp_path / "raw")
    records = list(dataset.read(tmp_path / "raw"))
    assert len(records) > 10 if tiles else len(records) == 30
    assert all(record.path.is_file() for record in records)
    options = ConvertOptions(pixels=PixelOptions(dataset.channels, 64), quiet=True)
    manifest, made = convert(dataset, tmp_path / "raw", tmp_path / "set", options, tmp_path / "raw" / SALT_NAME)
    assert made and manifest.phantom and not manifest.left_out
    assert sum(split.samples for split in manifest.splits.values()) == len(records)


def test_never_mixes_with_real_files(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds other files"):
        draw_phantoms("DDSM", tmp_path, 10)
    with pytest.raises(ValueError, match="known: APTOS2019, CBIS-DDSM, Camelyon, Camelyon-slides, CheXpert, DDSM"):
        draw_phantoms("DSM", tmp_path / "new", 10)
    assert not (tmp_path / "new").exists()


def test_the_salt_comes_last_and_the_next_command_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", "DDSM", "--out", str(tmp_path / "my data"), "--num-images", "10", "--size", "64"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    main(parse_args([*arguments, "--workers", "1"]))
    out = capsys.readouterr().out
    assert f"--raw '{tmp_path}/my data' --out data/shards/phantom-DDSM --salt '{tmp_path}/my data/phantom.salt'" in out
    monkeypatch.setattr(prep.phantoms, "_mapped", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(arguments))
    assert (tmp_path / "my data" / "PHANTOM.txt").exists() and not (tmp_path / "my data" / SALT_NAME).exists()


def shallow_features(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a cheat would look at: order, height, width, bytes, mean intensity and the digits of the file name."""
    dataset = DATASETS[name]
    view = dataset.views[dataset.default_view]
    rows, labels = [], []
    for order, record in enumerate(dataset.read(root)):
        image = cv2.imread(str(record.path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        digits = int("0" + re.sub(r"\D", "", record.path.stem)[-9:])
        number = int("0" + re.sub(r"\D", "", record.path.stem)[:4])
        size = record.path.stat().st_size
        rows.append([order, *image.shape[:2], size, image.mean(), digits, number, len(record.path.stem)])
        labels.append(view.mapping[str(record.labels[0])])
    # normal, benign and cancer differ in length, and the name of a DDSM file tells its class by the layout itself
    rows = [row[:-1] for row in rows] if name == "DDSM" else rows
    return np.array(rows, float), np.array(labels)


@pytest.mark.parametrize(
    "name",
    [name if name == "DDSM" else pytest.param(name, marks=pytest.mark.slow) for name in ("APTOS2019", "DDSM", "IDRiD")],
)
def test_label_cannot_be_had_without_the_lesions(name: str, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw_phantoms(name, tmp_path, 400, seed=1, size=160, quiet=True)
    features, labels = shallow_features(name, tmp_path)
    target = labels if labels.max() == 1 else (labels >= 2).astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, target, cv=folds, method="predict_proba")[:, 1]
    assert roc_auc_score(target, scores) < 0.6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_net_from_a_random_start_learns_them(tmp_path: Path) -> None:
    import torch
    from sklearn.metrics import roc_auc_score
    from torch import nn

    from shards.decoding import decode
    from shards.shardset import ShardSet

    draw_phantoms("DDSM", tmp_path / "raw", 300, size=512, workers=2, quiet=True)
    options = ConvertOptions(pixels=PixelOptions(1, 256), workers=2, quiet=True)
    convert(DATASETS["DDSM"], tmp_path / "raw", tmp_path / "set", options, tmp_path / "raw" / SALT_NAME)
    shards = ShardSet(tmp_path / "set")

    def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        split = shards.split(name)
        rows = split.rows(np.arange(split.num_samples))
        images = [
            decode(split.read(i), "jpeg", 1, int(rows.heights[i]), int(rows.widths[i]))
            for i in range(split.num_samples)
        ]
        small = np.stack([cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in images])
        return (torch.tensor(small[:, None]).float() / 255 - 0.2) / 0.18, torch.tensor(split.labels(None))

    torch.manual_seed(0)
    torch.set_num_threads(1)  # small work: a second thread waits more than it helps
    widths = (1, 16, 32, 64, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
    ]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    (images, labels), (test_images, test_labels) = load("train"), load("test")
    steps = 20 * -(-len(images) // 32)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(20):
        for rows in torch.randperm(len(images)).split(32):
            turned = images[rows].flip([3] if torch.rand(1) < 0.5 else [2])
            loss = nn.functional.cross_entropy(net(turned), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        scores = net(test_images).softmax(1)[:, 1]
    assert 0.75 <= roc_auc_score(test_labels, scores) <= 0.97


def test_in_a_log_progress_is_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1000, "shards", "image") as bar:
        for _ in range(1000):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["shards: 1000/1000 images"]
