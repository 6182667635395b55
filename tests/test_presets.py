"""Presets are data with a reference for each choice; they build at any size, on colour and on one channel."""

import json
from typing import Any, get_args

import pytest

from shards.colours import ColorJitter, Grayscale
from shards.dali_executor import graph
from shards.operators import HorizontalFlip, Normalize, RandomResizedCrop, Resize, VerticalFlip
from shards.presets import PRESETS, preset_of
from shards.transforms import train_transform
from train.config_file import load
from train.data_config import Data

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_their_graph_is_sound_for_a_gpu(name: str, channels: int) -> None:
    preset = preset_of(name)
    assert preset.title and all(len(step["reference"]) > 15 for step in (*preset.train, preset.evaluation))
    turns = any(step["op"] == "Rotate90" for step in preset.train)
    for size in (224, 96, 48 if turns else (64, 80)):
        made = train_transform(size, MEAN[:channels], STD[:channels], preset=name)
        assert made.size == ((size, size) if isinstance(size, int) else size)
    for bits in (8, 16):
        pipeline = graph(made, bits, False, "gpu")(batch_size=2, num_threads=1, device_id=None)
        assert len(pipeline.serialize()) > 1000


def test_study_is_the_published_order() -> None:
    assert train_transform(224, MEAN, STD, preset="study").operators == (
        Resize((256, 256)),
        RandomResizedCrop((224, 224), (0.8, 1.2)),
        VerticalFlip(0.5),
        HorizontalFlip(0.5),
        ColorJitter(0.2, 0.2, 0.2, 0.1, 0.1),
        Grayscale(0.2),
        Normalize(MEAN, STD),
    )
    steps = load({}, {"preset": "study"}).data.eval_transform(MEAN, STD).operators
    usual = load({}, {}).data.eval_transform(MEAN, STD).operators
    assert steps[0] == Resize((256, 256), rounded=False) and usual[0] == Resize(256, rounded=False)


def test_evaluation_does_not_round_unless_told_to_or_colours_follow() -> None:
    def first(steps: list[dict[str, Any]]) -> Any:
        config = load({}, {"eval_operators": json.dumps(steps), "image_size": 64})
        return config.data.eval_transform(MEAN, STD).operators[0]

    resize, crop = {"op": "Resize", "size": 72}, {"op": "CenterCrop", "size": 64}
    assert first([resize, crop]) == Resize(72, rounded=False)
    assert first([resize | {"rounded": True}, crop]) == Resize(72)
    assert first([resize, {"op": "Gamma"}, crop]) == Resize(72)


def test_the_config_knows_them_all_and_its_scale_wins() -> None:
    assert get_args(Data.model_fields["preset"].annotation) == PRESETS
    for preset in PRESETS:
        made: Any = train_transform(64, MEAN, STD, preset=preset, scale=(0.3, 0.4))
        assert [op.scale for op in made.operators if isinstance(op, RandomResizedCrop)] == [(0.3, 0.4)]
