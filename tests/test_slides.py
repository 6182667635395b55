"""Whole slides: resolution, tissue, outlines, labels, and what a user is told."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image, ImageDraw

from prep.annotations import Outline, read_outlines, tumour_labels
from prep.convert import convert
from prep.images import PixelOptions, UndecodableImage
from prep.make_shards import main, parse_args
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.planning import ConvertOptions, read_records
from prep.slide_layouts import MICRONS, annotation
from prep.sources import DATASETS
from prep.sources.slides import label_of, with_tiles
from prep.tiled_tiff import write_pyramid
from prep.whole_slides import Region, TileOptions, microns_of, open_slide, read_tile, side_at_level_0, tissue_shares
from shards.manifest import Manifest
from shards.shardset import ShardSet


def smooth(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 64, width // 64, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_a_written_pyramid_reads_back_with_its_levels_and_resolution(tmp_path: Path) -> None:
    picture = smooth(700, 1000)
    write_pyramid(tmp_path / "a.tif", picture, 0.25, 3, quality=95)
    slide = openslide.OpenSlide(str(tmp_path / "a.tif"))
    assert slide.level_dimensions == ((1000, 700), (500, 350), (250, 175))
    assert microns_of(slide) == pytest.approx(0.25, rel=1e-5)
    back = np.asarray(slide.read_region((0, 0), 0, (1000, 700)))[..., :3]
    assert np.abs(back.astype(int) - picture).mean() < 2


@pytest.mark.parametrize(("microns", "scale"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_a_tile_is_the_area_average_at_the_wanted_resolution(microns: float, scale: int, tmp_path: Path) -> None:
    picture = smooth(704, 1024)
    write_pyramid(tmp_path / "a.tif", picture, 0.25, 3, quality=95)
    side = side_at_level_0(open_slide(tmp_path / "a.tif"), TileOptions(64, microns))
    assert isinstance(side, float) and side == pytest.approx(64 * scale, rel=1e-4)
    tile = read_tile(tmp_path / "a.tif", Region(side, side, side, 64))
    part = picture[64 * scale : 128 * scale, 64 * scale : 128 * scale]
    wanted = part.reshape(64, scale, 64, scale, 3).mean((1, 3))
    assert tile.shape == (64, 64, 3) and np.abs(tile - wanted).mean() < 3


def test_no_thread_closes_a_slide_that_another_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.whole_slides.MAX_OPEN", 1)
    for name in "ab":
        write_pyramid(tmp_path / f"{name}.tif", smooth(256, 256), 0.25, 1, quality=95)
    slide = open_slide(tmp_path / "a.tif")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(open_slide, tmp_path / "b.tif").result()
    assert slide.read_region((0, 0), 0, (64, 64)).size == (64, 64)


def test_a_slide_put_in_the_place_of_an_open_one_is_read(tmp_path: Path) -> None:
    for name, level in (("a", 60), ("b", 200)):
        write_pyramid(tmp_path / f"{name}.tif", np.full((256, 256, 3), level, np.uint8), 0.25, 1, quality=95)
    region = Region(0.0, 0.0, 64.0, 64)
    assert read_tile(tmp_path / "a.tif", region).max() < 70
    (tmp_path / "b.tif").replace(tmp_path / "a.tif")
    assert read_tile(tmp_path / "a.tif", region).min() > 190


def test_tissue_is_what_is_coloured(tmp_path: Path) -> None:
    picture = np.full((1024, 1024, 3), 245, np.uint8)
    picture[:512, 512:768] = (200, 120, 180)
    picture[768:, :256] = 5  # a black border of the scanner
    picture[768:, 512:640] = (200, 120, 180)
    write_pyramid(tmp_path / "a.tif", picture, 0.25, 3, quality=95)
    shares = tissue_shares(tmp_path / "a.tif", 256.0)
    wanted = np.zeros((4, 4))
    wanted[:2, 2], wanted[3, 2] = 1, 0.5
    np.testing.assert_allclose(shares, wanted, atol=0.2)  # the blur reaches a pixel of eight


def test_a_grid_of_many_blocks_is_the_grid_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_phantoms("Camelyon-slides", tmp_path / "raw", 10, size=512, quiet=True)
    path = next((tmp_path / "raw").rglob("normal_*.tif"))
    whole = tissue_shares(path, 48.0)
    monkeypatch.setattr("prep.whole_slides.BLOCK", 64)
    np.testing.assert_allclose(tissue_shares(path, 48.0), whole, atol=0.25)
    assert 0.1 < whole.mean() < 0.9


def test_the_middle_third_decides_the_label() -> None:
    """Against Pillow's polygons on the whole slide, drawn pixel by pixel."""
    rng = np.random.default_rng(1)
    side, size = 96, 48
    corners = [(x * side, y * side) for y in range(10) for x in range(10)]
    regions = [Region(x, y, side, size) for x, y in corners]
    different = 0
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = rng.uniform(200, 760, 2) + rng.uniform(60, 250) * np.c_[np.cos(angles), np.sin(angles)]
        hole = points.mean(0) + 0.4 * (points - points.mean(0))
        canvas = Image.new("1", (960, 960))
        draw = ImageDraw.Draw(canvas)
        draw.polygon([(x, y) for x, y in points], fill=1)
        draw.polygon([(x, y) for x, y in hole], fill=0)
        mask = np.asarray(canvas)
        wanted = np.array([mask[y + 32 : y + 64, x + 32 : x + 64].any() for x, y in corners])
        given = tumour_labels(regions, [Outline(True, points), Outline(False, hole)])
        different += int((given != wanted).sum())
        assert wanted.any() and not wanted.all()
    assert different <= 20  # of 2000: edges that cut a pixel


def test_outlines_of_every_group_and_their_errors(tmp_path: Path) -> None:
    square = [[0, 0], [10, 0], [10, 10], [0, 10]]
    path = tmp_path / "DoeJane.xml"
    path.write_text(annotation([("_2", square), ("_0", square), ("metastases", square), ("None", square)]))
    assert [outline.tumour for outline in read_outlines(path, "slide 3")] == [True, True, False, False]
    path.write_text(annotation([("DoeJane", square)]))
    with pytest.raises(ValueError, match="annotation of slide 3 has a group that is none of _0, _1") as error:
        read_outlines(path, "slide 3")
    assert "Doe" not in str(error.value)
    for broken in ("<a>", annotation([("_0", square)]).replace('X="10', 'X="ten')):
        path.write_text(broken)
        with pytest.raises(ValueError, match="the annotation of slide 3 is no ASAP xml file"):
            read_outlines(path, "slide 3")


@pytest.fixture(scope="module")
def camelyon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides") / "raw"
    draw_phantoms("Camelyon-slides", root, 60, size=768, quiet=True)
    return root


def test_camelyon_becomes_tiles_with_slides_apart(camelyon: Path, tmp_path: Path) -> None:
    options = ConvertOptions(pixels=PixelOptions(3, None), quiet=True)
    dataset = with_tiles(DATASETS["Camelyon-slides"], TileOptions(32, 4 * MICRONS))
    manifest, _ = convert(dataset, camelyon, tmp_path / "set", options, camelyon / SALT_NAME)
    assert set(manifest.splits) == {"train", "val", "test"} and not any(manifest.grouping.intersections.values())
    assert sum(split.class_counts["tumour"] for split in manifest.splits.values()) > 5
    rows = ShardSet(tmp_path / "set").split("train").rows(np.arange(10))
    assert set(rows.heights) == {32}
    text = (tmp_path / "set" / "manifest.json").read_text()
    assert "normal_001" not in text and "tumor_002" not in text


def test_normal_slides_have_no_tumour_and_limits_hold(camelyon: Path) -> None:
    dataset = with_tiles(DATASETS["Camelyon-slides"], TileOptions(32, 4 * MICRONS, most=3))
    records = list(dataset.read(camelyon))
    normal = [record for record in records if record.group.startswith("normal")]
    assert len(normal) == 6 and {record.labels for record in normal} == {(0,)}
    for group in {record.group for record in records}:
        labels = [record.labels[0] for record in records if record.group == group]
        assert max(labels.count(0), labels.count(1)) <= 3
    assert {r.split for r in records if r.group.startswith("test")} == {"test"}
    assert records == list(dataset.read(camelyon))


def test_what_gives_no_tiles_is_counted_with_its_reason(camelyon: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(camelyon, tmp_path / "raw"))
    slide = next(root.rglob("normal_001.tif"))
    (root / "broken_normal.tif").write_bytes(b"no slide")
    (root / "normal_700.tif").write_bytes(b"no slide")
    write_pyramid(root / "normal_800.tif", np.full((512, 512, 3), 250, np.uint8), MICRONS, 2)
    write_pyramid(root / "normal_900.tif", np.full((512, 512, 3), 250, np.uint8), 2.0, 2)
    (root / "leave_out.txt").write_text("tumor_002\n")
    (root / "normal_001_mask.tif").write_bytes(slide.read_bytes())
    records, notes = read_records(DATASETS["Camelyon-slides"], root)
    assert notes == [
        "1 row left out: a slide coarser than the wanted micrometres a pixel",
        "1 row left out: a slide with tumour, or of unknown kind, without outlines",
        "1 row left out: a slide without enough tissue for one tile",
        "1 row left out: no slide that OpenSlide reads",
    ]
    assert not [record for record in records if record.group == "tumor_002" or "mask" in record.source]
    assert all(record.path.is_file() for record in records)
    with pytest.raises(UndecodableImage, match="no slide that OpenSlide reads"):
        read_tile(root / "normal_700.tif", Region(0, 0, 64, 64))


def test_camelyon17_stages_and_patients() -> None:
    outlines = {"patient_004_node_4": Path("a.xml"), "test_001": Path("b.xml")}
    stages = {"patient_000_node_0": "negative", "patient_001_node_0": "macro"}
    assert label_of(Path("x/patient_004_node_4.tif"), outlines, stages) == Path("a.xml")
    assert label_of(Path("patient_000_node_0.tif"), outlines, stages) == 0
    assert isinstance(label_of(Path("patient_001_node_0.tif"), outlines, stages), str)
    assert label_of(Path("test_002.tif"), outlines, stages) == 0
    assert isinstance(label_of(Path("test_002.tif"), {}, stages), str)
    assert isinstance(label_of(Path("tumor_002.tif"), {}, stages), str)


def test_patients_of_camelyon17_stay_together(camelyon: Path, tmp_path: Path) -> None:
    slide = next(camelyon.rglob("normal_001.tif"))
    for name in ("patient_000_node_0", "patient_000_node_1", "patient_001_node_0"):
        shutil.copy(slide, tmp_path / f"{name}.tif")
    rows = "".join(f"patient_00{n // 2}_node_{n % 2}.tif,negative\n" for n in range(3))
    (tmp_path / "stage_labels.csv").write_text("patient,stage\npatient_000.zip,pN0\n" + rows)
    records = list(DATASETS["Camelyon-slides"].read(tmp_path))
    assert {record.group for record in records} == {"patient_000", "patient_001"}
    (tmp_path / "patient_000_node_1.tif").rename(tmp_path / "Patient_000_Node_1.TIF")
    renamed = list(DATASETS["Camelyon-slides"].read(tmp_path))
    assert {record.group for record in renamed} == {"patient_000", "patient_001"} and len(renamed) == len(records)


def test_a_real_slide_is_tiled_without_labels(real_data: Path, tmp_path: Path) -> None:
    flags = f"--dataset slides --name mine --raw {real_data / 'wsi'} --out {tmp_path / 'set'} --workers 1 --quiet"
    main(parse_args([*flags.split(), "--tile-size", "224", "--microns", "1", "--min-tissue", "0.3"]))
    manifest = Manifest.read(tmp_path / "set")
    assert manifest.name == "mine" and list(manifest.splits) == ["train"] and manifest.classes == ["unlabelled"]
    split = ShardSet(tmp_path / "set").split("train")
    rows = split.rows(np.arange(split.num_samples))
    assert 8 <= split.num_samples <= 24 and set(rows.heights) == {224}  # 4 x 6 squares of 224 um, half of them glass
    json.loads((tmp_path / "set" / "manifest.json").read_text())


def test_a_tile_is_cut_at_whole_pixels_of_its_level_and_not_interpolated(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", smooth(704, 1024), 0.25, 3, quality=95)
    level = np.asarray(open_slide(tmp_path / "a.tif").read_region((0, 0), 1, (512, 352)))[..., :3]
    tile = read_tile(tmp_path / "a.tif", Region(101.0, 67.4, 192.0, 96))
    found = [
        (x, y) for x in (50, 51) for y in (33, 34) if (level[y : y + 96, x : x + 96] == tile).all()
    ]  # the two nearest either way
    assert found == [(50, 34)]
