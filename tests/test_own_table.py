"""--dataset csv: a user's own table."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep.convert import convert
from prep.images import PixelOptions
from prep.make_shards import main, parse_args
from prep.planning import ConvertOptions, read_records
from prep.sources.own_table import METRICS, TableColumns, table_dataset
from shards.manifest import Manifest
from shards.shardset import ShardSet
from train.metrics import metric_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    (root / "img").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["file,finding,grade,wet,dry,who,part"]
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(root / "img" / f"{number}.png")
        word, wet = ("sick", "well", "odd")[number % 3], ("1", "0", "-1", "")[number % 4]
        part = ("training", "valid", "Test")[number // 3 % 3]
        rows.append(f"img\\{number}.png,{word},{(2, 10, 1)[number % 3]},{wet},{number % 2},patient{number // 3},{part}")
    (root / "labels.csv").write_text("\n".join([*rows, "img/none.png,,,,,x,train"]) + "\n")
    return root


def test_words_and_numbers_become_classes_in_their_order(folder: Path) -> None:
    table = folder / "labels.csv"
    words = table_dataset("own", TableColumns(table, "file", ("finding",), "who", "part"))
    assert words.views["default"].classes == ["odd", "sick", "well"]
    numbers = table_dataset("own", TableColumns(table, "file", ("grade",)))
    assert numbers.views["default"].classes == ["1", "2", "10"]
    records, notes = read_records(words, folder)
    assert len(records) == 30 and notes == ["1 row left out: blank label"]
    assert records[0].labels == (1,) and records[0].path.is_file() and records[0].group == "patient0"
    assert {record.split for record in records} == {"train", "val", "test"}


def test_several_columns_are_multi_label_with_blanks_kept(folder: Path, tmp_path: Path) -> None:
    table = folder / "labels.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    dataset = table_dataset("own", TableColumns(table, "file", ("wet", "dry"), "who"))
    options = ConvertOptions(pixels=PixelOptions(3, 16, "raw"), quiet=True)
    manifest, _ = convert(dataset, folder, tmp_path / "set", options)
    assert manifest.task == "multi-label" and manifest.encoding == "raw"
    assert set(manifest.grouping.intersections.values()) == {0}
    labels = np.concatenate([ShardSet(tmp_path / "set").split(name).labels(None) for name in manifest.splits])
    assert np.isnan(labels[:, 0]).sum() == 14 and not np.isnan(labels[:, 1]).any()
    assert labels[:, 1].sum() == 15


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--dataset csv --name eyes --path-column file --label-columns finding --group-column who --workers 1"
    flags += " --format png --short-side 16 --max-bad 0.1 --target-metric accuracy"
    main(parse_args([*flags.split(), "--raw", str(folder), "--out", str(tmp_path / "set")]))
    manifest = Manifest.read(tmp_path / "set")
    assert manifest.name == "eyes" and manifest.target_metric == "accuracy" and manifest.grouping.by == "who"
    assert "30 images" in capsys.readouterr().out


def test_decimal_numbers_are_ordered_as_numbers(folder: Path) -> None:
    table = folder / "labels.csv"
    table.write_text(
        "path,label\n" + "".join(f"{n}.png,{value}\n" for n, value in enumerate(["10.5", "2.0", "-1"] * 9))
    )
    assert table_dataset("own", TableColumns(table)).views["default"].classes == ["-1", "2.0", "10.5"]


def _rows(ids: int, each: int) -> str:
    return "path,who\n" + "".join(f"{n}-{m}.png,MRN4711-{n}\n" for n in range(ids) for m in range(each))


@pytest.mark.parametrize(("ids", "each", "refused"), [(3, 1, True), (20, 2, False), (21, 4, True), (21, 5, False)])
def test_a_column_of_ids_does_not_become_class_names(ids: int, each: int, refused: bool, folder: Path) -> None:
    """Class names stand in the manifest: four views of each patient under the patient's name would publish all ids."""
    table = folder / "labels.csv"
    table.write_text(_rows(ids, each))
    if not refused:
        assert len(table_dataset("own", TableColumns(table, labels=("who",))).views["default"].classes) == ids
        return
    with pytest.raises(ValueError, match=rf"column 'who' has {ids} values in {ids * each} rows, .* like ids") as error:
        table_dataset("own", TableColumns(table, labels=("who",)))
    assert "4711" not in str(error.value) and "--group-column" in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"group": "finding"}, "column 'finding' is named twice among --path-column, --label-columns"),
        ({"labels": ("wet", "dry", "wet")}, "column 'wet' is named twice"),
        ({"path": "nothing"}, "labels.csv has no column 'nothing'; it has file, finding"),
        ({"table": Path("none.csv")}, r"there is no table none\.csv: name it with --table"),
    ],
)
def test_wrong_names_are_told(columns: dict[str, object], message: str, folder: Path) -> None:
    given = {"table": folder / "labels.csv", "path": "file", "labels": ("finding",)} | columns
    with pytest.raises(ValueError, match=message):
        table_dataset("own", TableColumns(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [("finding",), ("wet", "dry")])
def test_a_metric_that_training_does_not_know_is_told_before_a_conversion(
    labels: tuple[str, ...], folder: Path
) -> None:
    columns, task = (
        TableColumns(folder / "labels.csv", "file", labels),
        ("single-label", "multi-label")[len(labels) - 1],
    )
    assert METRICS[task] == metric_names(task)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--target-metric 'acuracy' is none of accuracy, .*: did you mean accuracy\?"):
        table_dataset("own", columns, target_metric="acuracy")


def test_a_split_of_another_name_is_told_by_row(folder: Path) -> None:
    columns = TableColumns(folder / "labels.csv", "file", ("finding",), split="who")
    with pytest.raises(ValueError, match=r"the split in labels\.csv row 2 is none of train, val, test"):
        read_records(table_dataset("own", columns), folder)
