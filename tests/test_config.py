"""The config and ds_config.json: every mistake is one line that names it. Run: pytest tests/test_config.py"""

import json
from pathlib import Path
from typing import Any

import pytest

from train import ds_settings
from train.config import Config, changed, fields
from train.config_file import load, read_file
from train.data_config import shares
from train.flags import ELSEWHERE, parse_args, parser
from train.run import resolve


def test_defaults_are_the_studys() -> None:
    config = load()
    assert (config.optimizer.optimizer, config.optimizer.lr, config.optimizer.weight_decay) == ("adam", 1e-4, 1e-5)
    settings = ds_settings.read()
    assert (settings.train_batch_size, settings.gradient_clipping, settings.stage) == (64, 1.0, 0)


def test_flags_win_over_the_file() -> None:
    config = load({"optimizer": {"lr": 0.1, "weight_decay": 0.2}}, {"lr": "3e-4", "crop_scale": "0.5,1"})
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.data.crop_scale) == (3e-4, 0.2, (0.5, 1.0))


@pytest.mark.parametrize(
    ("file", "flags", "words"),
    [
        ({}, {"lr": "-1"}, ["--lr", "-1", "greater than 0"]),
        ({}, {"lr": "fast"}, ["--lr", "fast", "number"]),
        ({}, {"lr": "nan"}, ["--lr", "finite"]),
        ({}, {"start": "wx"}, ["--start", "wx", "'wt', 'st' or 'ri'"]),
        ({}, {"name": "a/b"}, ["--name", "a/b"]),
        ({}, {"crop_scale": "1,.5"}, ["crop_scale", "smaller number first"]),
        ({}, {"resize": "100"}, ["resize 100", "image_size 224"]),
        ({}, {"schedule": "multistep"}, ["--milestones"]),
        ({}, {"schedule": "onecycle", "final_div_factor": "1e-4"}, ["final_div_factor", "400 x lr"]),
        ({}, {"start": "ri", "weights": "w.safetensors"}, ["weights", "ri"]),
        ({}, {"start": "wt", "wt_until": "3"}, ["wt_until", "--start st"]),
        ({"optimizer": {"lrr": 1}}, {}, ["optimizer.lrr", "did you mean lr?"]),
        ({"optimiser": {}}, {}, ["optimiser", "did you mean optimizer?"]),
        ({"lr": 1}, {}, ["section 'lr'", "section optimizer"]),
        ({"data": {"lr": 1}}, {}, ["data.lr", "section optimizer"]),
        ({"data": 3}, {}, ["section data", "not a table"]),
        ({"deepspeed": {}}, {}, ["ds_config.json"]),
        ({"training": {"epochs": 0}}, {}, ["training.epochs", "got 0", "greater than or equal to 1"]),
    ],
)
def test_mistakes_are_named(file: dict[str, Any], flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load(file, flags)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_text_fields_keep_text_that_looks_like_numbers() -> None:
    config = load({}, {"name": "5", "start": "st", "wt_until": "3", "milestones": "3", "optimizer_args": '{"eps": 1}'})
    assert (config.training.name, config.model.boundary, config.schedule.milestones) == ("5", 3, (3.0,))
    assert config.optimizer.optimizer_args == {"eps": 1}
    assert load({}, {"start": "st", "wt_until": "blocks.3"}).model.boundary == "blocks.3"


def test_a_config_survives_json_and_cannot_be_changed() -> None:
    config = load({}, {"lr": "0.1", "milestones": "1,2"})
    assert load(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0  # type: ignore[misc]
    assert changed(config, load({}, {"milestones": "1,2"})) == {"lr": (0.1, 1e-4)}


@pytest.mark.parametrize(
    ("name", "text"), [("c.toml", "[optimizer]\nlr = 0.5\n"), ("c.json", '{"optimizer": {"lr": 0.5}}')]
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert load(read_file(tmp_path / name)).optimizer.lr == 0.5


@pytest.mark.parametrize("content", ["[1]", "{", '"x"'])
def test_files_that_are_no_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=r"c\.json"):
        read_file(tmp_path / "c.json")


def test_every_field_is_a_flag_with_a_description() -> None:
    help_text = " ".join(parser().whole_help().split())
    for name, (_, field) in fields().items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert field.description
    assert Config.model_fields.keys() == {"data", "model", "optimizer", "schedule", "training", "evaluation", "finder"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--modle", "x"], ["--modle", "did you mean --model?"]),
        (["--learning-rate", "x"], ["unknown flag --learning-rate: did you mean --lr?"]),
        (["--batch_size=3"], ["did you mean --global-batch?"]),
        (["--batch", "3"], ["unknown flag --batch: did you mean --global-batch?"]),
        (["--qqqq"], ["unknown flag --qqqq: --help-all lists all flags"]),
        (["--lr=3", "--zero-stge=1"], ["--zero-stge", "--zero-stage"]),
        (["resnet50"], ["resnet50"]),
        (["--global-batch", "many"], ["--global-batch", "many"]),
        (["--stop-after-steps", "0"], ["--stop-after-steps", "got 0"]),
    ],
)
def test_unknown_flags(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_args(argv)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_others_call_our_flags_leads_to_flags_that_exist() -> None:
    known = {action.dest for action in parser()._actions}
    assert set(ELSEWHERE.values()) <= known and not known & set(ELSEWHERE)


def test_flags_reach_config_and_deepspeed() -> None:
    args, flags = parse_args(
        ["--lr", "1e-3", "--no-tensorboard", "--global-batch", "24", "--precision", "bf16", "--zero-stage", "2"]
    )
    config, settings = resolve(args, flags)
    assert (config.optimizer.lr, config.training.tensorboard) == (1e-3, False)
    assert (settings.train_batch_size, settings.precision, settings.stage) == (24, "bf16", 2)


def test_a_runs_config_json_is_a_config_file(tmp_path: Path) -> None:
    args, flags = parse_args(["--lr", "1e-3", "--global-batch", "24"])
    config, settings = resolve(args, flags)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"config": config.model_dump(mode="json"), "deepspeed": settings.portable(), "world": 2})
    )
    args, flags = parse_args(["--config", str(path), "--epochs", "3"])
    again, settings_again = resolve(args, flags)
    assert changed(config, again) == {"epochs": (10, 3)}
    assert settings_again == settings


GOOD: dict[str, Any] = {"train_batch_size": 16, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_batchsize": 3}, ["train_batchsize", "did you mean train_batch_size?"]),
        ({"optimizer": {}}, ["optimizer", "--optimizer"]),
        ({"scheduler": {}}, ["scheduler", "--schedule"]),
        ({"bf16": {"enabled": True}}, ["bf16", "torch_autocast"]),
        ({"fp16": {"enabled": True}}, ["fp16", "torch_autocast"]),
        ({"gradient_clipping": None}, ["gradient_clipping"]),
        ({"zero_optimization": {"stage": 4}}, ["stage", "got 4", "0, 1, 2, 3"]),
        ({"zero_optimization": {}}, ["stage"]),
        ({"torch_autocast": {"enabled": True, "dtype": "float8"}}, ["dtype", "float8"]),
        ({"train_batch_size": 0}, ["train_batch_size", "0"]),
    ],
)
def test_what_deepspeed_would_pass_over_is_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        ds_settings.parse({**GOOD, **change})
    assert all(word in str(caught.value) for word in words), caught.value


def test_clipping_must_be_written_out() -> None:
    content = {key: value for key, value in GOOD.items() if key != "gradient_clipping"}
    with pytest.raises(ValueError, match="write it out"):
        ds_settings.parse(content)


def test_batch_micro_batch_and_ranks() -> None:
    resolved = ds_settings.parse(GOOD, micro_batch=4).resolved(2)
    assert (resolved["train_micro_batch_size_per_gpu"], resolved["gradient_accumulation_steps"]) == (4, 2)
    assert ds_settings.parse({**GOOD, "gradient_accumulation_steps": 4}).micro_batch(2) == 2
    with pytest.raises(ValueError, match="divides 8"):
        ds_settings.parse(GOOD, micro_batch=3).micro_batch(2)
    with pytest.raises(ValueError, match="train_batch_size 16 is not"):
        ds_settings.parse({**GOOD, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3}).micro_batch(
            1
        )


def test_offload_needs_a_stage_that_has_something_to_move() -> None:
    zero = ds_settings.parse(GOOD, zero_stage=3, offload="parameters").resolved(1)
    assert {zero["zero_optimization"][key]["device"] for key in ("offload_optimizer", "offload_param")} == {"cpu"}
    assert zero["zero_force_ds_cpu_optimizer"] is False
    taken_back = ds_settings.parse({**GOOD, "zero_optimization": zero["zero_optimization"]}, offload="none")
    assert taken_back.resolved(1)["zero_optimization"] == {"stage": 3}
    for stage, what, words in ((0, "optimizer", "--zero-stage 1 or above"), (2, "parameters", "--zero-stage 3, or")):
        with pytest.raises(ValueError, match=words):
            ds_settings.parse(GOOD, zero_stage=stage, offload=what)
    with pytest.raises(ValueError, match="got 'nvme'; allowed: none, optimizer, parameters"):
        ds_settings.parse(GOOD, zero_stage=3, offload="nvme")


def test_unknown_keys_inside_known_sections_and_passed_on_keys() -> None:
    assert ds_settings.parse({**GOOD, "steps_per_print": 5}).resolved(1)["steps_per_print"] == 5
    assert ds_settings.parse(GOOD).portable()["train_batch_size"] == 16
    with pytest.raises(ValueError, match="--precision"):
        ds_settings.parse(GOOD, precision="bf17")


@pytest.mark.parametrize("mix", ["a=0.5,b", "a=x", "a=-1", "=1", "a=nan", ""])
def test_a_mixture_that_is_none_is_refused(mix: str) -> None:
    with pytest.raises(ValueError, match="write places and positive shares"):
        shares(mix)


def test_a_set_has_one_share_of_a_mixture() -> None:
    assert shares("a=0.5, b =2") == {"a": 0.5, "b": 2.0}
    with pytest.raises(ValueError, match="'a=3' names a set a second time"):
        shares("a=1,b=2,a=3")
