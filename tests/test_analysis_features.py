"""Feature banks: made once, found again, resumed where an extraction stopped, keyed by what they come from."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import analysis.banks
from analysis.banks import Bank, open_bank
from analysis.ranks import share
from analysis.results import digest_of_state, find_result, read_result, write_result
from train.hooks import How, layout_of, pool, tapped
from train.layers import taps

NUM_IMAGES, BATCH = 23, 4
KEY = {"weights": "a", "split": "test"}


class Source:
    """Batches of a fixed set of images, the last one padded and masked; counts what it is asked for."""

    def __init__(self, side: int = 32, damaged: int | None = None):
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(NUM_IMAGES, 3, side, side, generator=generator)
        self.damaged, self.batches, self.stop_after = damaged, 0, 1_000

    def __call__(self, consumed: int) -> Iterator[tuple[torch.Tensor, ...]]:
        for first in range(consumed, NUM_IMAGES, BATCH):
            if self.batches == self.stop_after:
                raise OSError("the disk went away")
            self.batches += 1
            index = torch.arange(first, first + BATCH)
            valid = (index < NUM_IMAGES) & (index != (-1 if self.damaged is None else self.damaged))
            index = index.clamp(max=NUM_IMAGES - 1)
            yield self.images[index], index % 3, index + 1_000, valid


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=32).eval()


def bank_of(folder: Path, model: nn.Module, source: Source, key: dict | None = None, limit: int = NUM_IMAGES) -> Bank:
    return open_bank(folder, key or KEY, model, taps(model), source, limit)


def by_hand(model: nn.Module, how: How) -> dict[str, np.ndarray]:
    """Pooled outputs of every tap over all valid images."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in taps(model)}
    with tapped(taps(model)) as outputs, torch.inference_mode():
        for images, _, _, valid in Source()(0):
            model(images)
            for name, output in outputs.items():
                parts[name].append(pool(output, how, layout_of(model)).numpy()[valid.numpy()])
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def test_bank_holds_what_hooks_give(tmp_path, deit):
    bank = bank_of(tmp_path, deit, Source())
    expected = by_hand(deit, "both")
    assert list(bank.layers) == list(taps(deit))
    for name, array in bank.layers.items():
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, expected[name])
    np.testing.assert_array_equal(bank.labels, np.arange(NUM_IMAGES) % 3)
    np.testing.assert_array_equal(bank.sample_ids, np.arange(1_000, 1_000 + NUM_IMAGES, dtype=np.uint64))


def test_poolings_of_one_bank(tmp_path, deit):
    bank = bank_of(tmp_path, deit, Source())
    expected = by_hand(deit, "cls")["blocks.3"]
    np.testing.assert_array_equal(bank.layer("blocks.3"), expected)
    np.testing.assert_array_equal(bank.layer("blocks.3", "cls"), expected)
    np.testing.assert_array_equal(bank.layer("blocks.3", "mean"), by_hand(deit, "mean")["blocks.3"])
    assert "head" not in bank.doubled
    assert bank.layer("head", "mean").shape == (NUM_IMAGES, 3)
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        bank.layer("head", "max")


def test_found_again_without_a_forward_pass(tmp_path, deit):
    first = bank_of(tmp_path, deit, Source())
    again = Source()
    second = bank_of(tmp_path, deit, again)
    assert again.batches == 0
    np.testing.assert_array_equal(first.layers["head"], second.layers["head"])


@pytest.mark.parametrize("change", [{"key": {**KEY, "weights": "b"}}, {"limit": 7}])
def test_another_question_is_another_bank(tmp_path, deit, change):
    bank_of(tmp_path, deit, Source())
    again = Source()
    bank = bank_of(tmp_path, deit, again, **change)
    assert again.batches > 0
    assert bank.num_images == change.get("limit", NUM_IMAGES)


def test_interrupted_extraction_goes_on(tmp_path, deit):
    whole = bank_of(tmp_path / "whole", deit, Source())
    source = Source()
    source.stop_after = 3
    with pytest.raises(OSError, match="disk went away"):
        bank_of(tmp_path / "part", deit, source)
    source.batches, source.stop_after = 0, 1_000
    bank = bank_of(tmp_path / "part", deit, source)
    assert source.batches == -(-NUM_IMAGES // BATCH) - 3
    for name in whole.layers:
        np.testing.assert_array_equal(bank.layers[name], whole.layers[name])


def test_a_bank_that_is_made_anew_and_interrupted_says_nothing_of_the_old_rows(tmp_path, deit, monkeypatch):
    whole = bank_of(tmp_path / "whole", deit, Source())
    bank_of(tmp_path / "part", deit, Source())
    next((tmp_path / "part").glob("*/layer-000.npy")).unlink()
    real = analysis.banks._reserve

    def killed(path):
        real(path)
        if path.name == "sample_ids.npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(analysis.banks, "_reserve", killed)
    with pytest.raises(KeyboardInterrupt):
        bank_of(tmp_path / "part", deit, Source())
    monkeypatch.setattr(analysis.banks, "_reserve", real)
    bank = bank_of(tmp_path / "part", deit, Source())
    for name in whole.layers:
        np.testing.assert_array_equal(bank.layers[name], whole.layers[name])


@pytest.mark.parametrize("world", [2, 3, 9])
def test_shares_of_ranks_join_to_the_same_bytes(tmp_path, deit, world):
    source = Source(damaged=9)
    bank_of(tmp_path / "one", deit, source)

    def shares() -> list[Bank]:
        spans = [share(NUM_IMAGES, BATCH, number, world) for number in range(world)]
        assert spans[0][0] == 0 and spans[-1][1] == NUM_IMAGES
        assert all(first[1] == second[0] for first, second in pairwise(spans))
        return [
            open_bank(
                tmp_path / "parts", {**KEY, "from": start}, deit, taps(deit),
                lambda consumed, start=start: source(start + consumed), stop - start,
            )
            for start, stop in spans if start < stop
        ]  # fmt: skip

    open_bank(tmp_path / "many", KEY, deit, taps(deit), source, NUM_IMAGES, shares=shares)
    one, many = (sorted((tmp_path / name).rglob("*.*")) for name in ("one", "many"))
    assert [path.name for path in one] == [path.name for path in many]
    assert all(path.read_bytes() == other.read_bytes() for path, other in zip(one, many, strict=True))


def test_damaged_bank_is_made_anew(tmp_path, deit):
    expected = np.array(bank_of(tmp_path, deit, Source()).layers["head"])
    (column,) = tmp_path.glob("*/layer-000.npy")
    column.write_bytes(b"\x93NUMPY")
    np.testing.assert_array_equal(bank_of(tmp_path, deit, Source()).layers["head"], expected)


def test_masked_images_leave_no_row(tmp_path, deit):
    bank = bank_of(tmp_path, deit, Source(damaged=5))
    assert bank.num_images == NUM_IMAGES - 1
    assert 1_005 not in bank.sample_ids


def test_no_valid_image_is_an_error(tmp_path, deit):
    def nothing(consumed: int) -> Iterator[tuple[torch.Tensor, ...]]:
        yield (
            torch.zeros(2, 3, 32, 32),
            torch.zeros(2),
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(2, dtype=torch.bool),
        )

    with pytest.raises(ValueError, match="no valid image"):
        open_bank(tmp_path, KEY, deit, taps(deit), nothing, 2)


def test_hooks_are_gone_and_modes_are_back(tmp_path, deit):
    deit.train()
    bank_of(tmp_path, deit, Source())
    assert deit.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in deit.modules())
    deit.eval()


def test_state_digest_sees_values_names_and_types_but_not_order():
    state = {"a": torch.arange(4.0), "b": torch.zeros((), dtype=torch.int64)}
    assert digest_of_state(state) == digest_of_state(dict(reversed(state.items())))
    others = [
        {**state, "a": torch.arange(4.0) + 1e-7},
        {**state, "a": torch.arange(4.0).reshape(2, 2)},
        {"a": state["a"]},
    ]
    assert digest_of_state(state) not in {digest_of_state(other) for other in others}


def test_result_answers_its_own_request_alone(tmp_path):
    request = {"weights": {"end": "x"}, "images": np.int64(4), "layers": ("a", "b")}
    path = write_result(tmp_path, "knn", request, {"value": float("nan"), "row": np.arange(2.0)}, "<svg></svg>")
    assert find_result(tmp_path, "knn", request)["row"] == [0.0, 1.0]
    assert find_result(tmp_path, "knn", {**request, "images": 5}) is None
    assert find_result(tmp_path, "cka", request) is None
    assert read_result(path)["value"] is None
    path.write_text("{}")
    with pytest.raises(ValueError, match="no result of this release"):
        read_result(path)
