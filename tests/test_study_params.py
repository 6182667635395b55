"""params.json of the published study: each key has its meaning here, or a line that says why not."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from shards.dali_executor import DaliExecutor
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.host_views import HostViews
from shards.transforms import Views, transform_of
from train.config import Finder, Schedule
from train.config_file import load
from train.ds_settings import read
from train.optimisation import Rates, add_lars
from train.run import main
from train.study_keys import Keys
from train.study_params import CONSTANTS, boundary, translate
from train.study_transforms import operators

OFF = {"apply": False}
PARAMS: dict[str, Any] = {
    "dataset_params": {
        "dataset": "APTOS2019", "data_location": "/path_to_data_dir",
        "train_transforms": {
            "Resize": {"apply": True, "height": 256, "width": 256}, "Normalize": True,
            "CenterCrop": {"apply": False, "height": 224, "width": 224},
            "VerticalFlip": {"apply": True, "p": 0.5}, "HorizontalFlip": {"apply": True, "p": 0.5},
            "RandomRotation": {"apply": True, "angle": 5, "p": 0.5}, "RandomGrayscale": {"apply": True, "p": 0.2},
            "RandomCrop": {"apply": False, "height": 32, "width": 32, "padding": 4, "p": 0.5},
            "ColorJitter": {"apply": True, "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.1, "p": 0.2},
            "RandomPerspective": {"apply": True, "distortion_scale": 0.2, "p": 0.5},
            "RandomAffine": {"apply": True, "degrees": 5, "translate": [0.1, 0.3], "scale": [0.1, 3.3], "shear": 0.2,
                             "p": 0.5},
            "RandomErasing": {"apply": True, "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "value": 0, "p": 0.5},
            "RandomGaussianBlur": {"apply": True, "radius_min": 0.1, "radius_max": 2.0, "p": 0.2},
            "RandomSolarize": {"apply": True, "threshold": 128, "p": 0.2},
            "RandomResizedCrop": {"apply": True, "size": 224, "scale": [0.8, 1.2]},
            "MultiCrop": {"apply": False, "n_crops": [2, 6], "sizes": [224, 96], "scales": [[0.4, 1.0], [0.05, 0.4]]},
        },
        "val_transforms": {"Resize": {"apply": True, "height": 256, "width": 256},
                           "CenterCrop": {"apply": True, "height": 224, "width": 224}, "Normalize": True},
        "test_transforms": {"Resize": {"apply": True, "height": 256, "width": 256},
                            "CenterCrop": {"apply": True, "height": 224, "width": 224}, "Normalize": True},
    },
    "dataloader_params": {"trainloader": {"batch_size": 64, "num_workers": 4, "prefetch_factor": 4, "shuffle": True,
                                          "pin_memory": True, "drop_last": True, "persistent_workers": True},
                          "valloader": {"batch_size": 64}, "testloader": {"batch_size": 64}},
    "model_params": {"backbone_type": "deit_small", "cnn_params": {"pretrained_type": "supervised"},
                     "transformers_params": {"img_size": [224], "patch_size": 16, "pretrained_type": "supervised",
                                             "is_memory_efficient": True},
                     "pretrained": True, "wtst_init": {"apply": True, "transfer_up_to_layer": 3},
                     "freeze_backbone": False},
    "optimization_params": {"default": {
        "optimizer": {"type": "Adam", "autoscale_lr": True, "params": {"lr": 1e-3, "weight_decay": 1e-5, "eps": 1e-7}},
        "LARS_params": {"use": True, "batch_act_thresh": 128, "eps": 1e-8, "trust_coef": 0.002},
        "scheduler": {"type": ["LinearWarmup", "ReduceLROnPlateau"],
                      "params": {"ReduceLROnPlateau": {"mode": "max", "factor": 0.2, "patience": 4, "verbose": True},
                                 "OneCycleLR": {"anneal_strategy": "linear", "final_div_factor": 1e-4},
                                 "MultiStepLR": {"milestones": [7], "gamma": 0.1},
                                 "CosineAnnealingLR": {"eta_min": 1e-6},
                                 "LinearWarmup": {"warmup_epochs": 0, "warmup_iters": 1000}}}}},
    "training_params": {"model_name": "mine", "epochs": 2, "val_every": 0.5, "log_every": 25, "save_best_model": True,
                        "log_embeddings": False, "knn_eval": True, "grad_clipping": 1.0, "restore_session": False,
                        "restore_only_model": False, "use_tensorboard": False, "use_mixed_precision": True,
                        "save_dir": "/path_to_save_dir"},
    "system_params": {"use_all_GPUs": False, "which_GPUs": "0", "use_GPU": True},
    "log_params": {"project_name": "the_name_of_the_project", "run_name": "DEFINED_BY_MODEL_NAME"},
    "lr_finder": {"type": "grid_search", "grid_search_params": {
        "min_pow": -5, "max_pow": -2, "resolution": 7, "n_epochs": 3, "random_lr": True, "keep_schedule": True,
        "report_intermediate_steps": True}},
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    content = deepcopy(PARAMS)
    *way, last = path.split(".")
    table: Any = content
    for key in way:
        table = table[key]
    table[last] = value
    return content


def test_a_whole_file_becomes_a_config() -> None:
    told = translate(PARAMS, world=2)
    config, settings = load({}, told.fields), read(**told.deepspeed)
    assert (settings.train_batch_size, settings.gradient_clipping, settings.precision) == (128, 1.0, "fp16")
    data, model, optimizer, schedule = config.data, config.model, config.optimizer, config.schedule
    kinds = [step["op"] for step in data.train_operators or []]
    assert kinds == [
        "Resize", "RandomResizedCrop", "VerticalFlip", "HorizontalFlip", "Rotation", "ColorJitter", "Grayscale",
        "GaussianBlur", "Affine", "Perspective", "Solarize", "Erasing",
    ]  # fmt: skip
    assert (data.mean, data.std, data.image_size, data.tail) == (*CONSTANTS["APTOS2019"], 224, "drop")
    assert (model.model, model.start, model.wt_until) == ("deit_small_patch16_224.fb_in1k", "st", "blocks.3")
    assert (optimizer.optimizer, optimizer.autoscale_lr, optimizer.optimizer_args) == ("adam", True, {"eps": 1e-7})
    assert (optimizer.lars, optimizer.lars_from_batch, optimizer.lars_trust) == (True, 128, 0.002)
    assert (schedule.schedule, schedule.plateau_factor, schedule.plateau_patience) == ("plateau", 0.2, 4)
    assert (schedule.warmup_steps, config.training.val_every, config.training.name) == (1000, 0.5, "mine")
    assert len(told.notes) == 4 and config.evaluation.knn_eval and not config.evaluation.log_embeddings
    assert config.finder == Finder(
        finder_min_pow=-5, finder_max_pow=-2, finder_resolution=7, finder_epochs=3, finder_random=True,
        finder_keep_schedule=True, finder_intermediate=True,
    )  # fmt: skip
    assert not config.evaluation.study_metrics
    assert translate(PARAMS, exact=True).fields["st_variant"] == "study"
    assert translate(PARAMS, exact=True).fields["study_metrics"] is True


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dataset_params.dataset", "MNIST", "dataset_params.dataset is 'MNIST': the study has APTOS2019"),
        ("dataset_params.train_transforms.Resise", OFF, "train_transforms.Resise: did you mean Resize"),
        ("dataset_params.train_transforms.MultiCrop", {"apply": True, "n_crops": [2, 6], "sizes": [224]},
         "2 counts, 1 sizes"),
        ("dataset_params.train_transforms.HorizontalFlip.pp", 1, "unknown key dataset_params.train_transforms.Horiz"),
        ("dataset_params.val_transforms.Resize.height", 300, "validation and test share one here"),
        ("training_params.restore_session", True, "go on with --resume runs/mine"),
        ("training_params.restore_only_model", True, "--start wt --weights runs/mine/weights/best.safetensors"),
        ("model_params.backbone_type", "focal_tiny", "timm has no Focal Transformer"),
        ("model_params.transformers_params.img_size", [384], "the transforms end in 224 pixels"),
        ("optimization_params.default.scheduler.type", ["CyclicLR"], "at most one of ReduceLROnPlateau"),
        ("optimization_params.default.scheduler.params.ReduceLROnPlateau.mode", "min", "give max"),
        ("lr_finder.type", "range_test", "lr_finder.type is 'range_test': the study has grid_search alone"),
        ("lr_finder.grid_search_params.n_epoch", 1, "grid_search_params.n_epoch: did you mean n_epochs"),
        ("optimization_params.default.momentum", 1, "unknown key optimization_params.default.momentum"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")) as error:
        translate(changed(path, value))
    assert "\n" not in str(error.value)


def test_schedules_of_the_study() -> None:
    def schedule(kinds: list[str]) -> Schedule:
        told = translate(changed("optimization_params.default.scheduler.type", kinds))
        return load({}, told.fields).schedule

    assert schedule(["LinearWarmup", "CosineAnnealingLR"]).min_lr == 1e-6
    assert (schedule(["MultiStepLR"]).milestones, schedule(["MultiStepLR"]).warmup_steps) == ((7.0,), 0)
    assert schedule([]).schedule == "constant"
    with pytest.raises(ValueError, match=r"final_div_factor: 0\.0001 makes onecycle end at"):
        schedule(["LinearWarmup", "OneCycleLR"])


def test_a_linear_onecycle_is_torchs() -> None:
    made = Schedule(schedule="onecycle", warmup_steps=0, anneal="linear", div_factor=10, final_div_factor=100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        0.1,
        total_steps=40,
        anneal_strategy="linear",
        div_factor=10,
        final_div_factor=100,
        cycle_momentum=False,
    )
    for step in range(40):
        assert Rates(made, 0.1, 40, 10).at(step, []) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("model", "table"),
    [
        ("resnet50.tv_in1k", {-2: None, -1: "stem", 0: "stem", 1: "layer1.2", 2: "layer2.3", 4: "layer4.2"}),
        ("inception_v3.tv_in1k", {-2: None, -1: "stem", 0: "stem", 3: "Mixed_5d", 4: "Mixed_6e", 5: "Mixed_7c"}),
        ("deit_small_patch16_224.fb_in1k", {-2: None, -1: "stem", 0: "blocks.0", 7: "blocks.7", 12: "blocks.11"}),
        ("deit_small5b", {-1: "stem", 4: "blocks.4"}),
        ("swin_tiny_patch4_window7_224.ms_in1k", {-1: "patch_embed", 0: "layers.0.blocks.0", 4: "layers.2.blocks.0"}),
    ],
)  # fmt: skip
def test_transfer_up_to_layer_is_a_group(model: str, table: dict[int, str | None]) -> None:
    assert {n: boundary(model, n) for n in table} == table


def test_lars_is_its_equation() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    before, decay, trust = weight.detach().clone(), 0.1, 0.02
    optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=decay)
    add_lars(optimizer, trust, 1e-8)
    (weight**3).sum().backward()
    slope = 3 * before**2
    optimizer.step()
    rate = trust * before.norm() / (slope.norm() + decay * before.norm() + 1e-8)
    torch.testing.assert_close(weight.detach(), before - 0.5 * rate * (slope + decay * before))
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_flags_win_over_params(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "params.json"
    file.write_text(json.dumps(PARAMS))
    assert main(["--params", str(file), "--print-config", "--lr", "0.5", "--global-batch", "16", "--start", "ri"]) == 0
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert (shown["config"]["optimizer"]["lr"], shown["deepspeed"]["train_batch_size"]) == (0.5, 16)
    assert shown["config"]["model"]["wt_until"] is None and "params: system_params.which_GPUs" in told.err
    with pytest.raises(ValueError, match="two descriptions of a run"):
        main(["--params", str(file), "--config", str(file)])


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "params.md").read_text()
    for section, content in PARAMS.items():
        inner = content["default"] if section == "optimization_params" else content
        for key in inner:
            assert key in page or section == "log_params", f"{section}.{key}"
    for key in PARAMS["lr_finder"]["grid_search_params"]:
        assert key in page, key


NAMES = [name for name in PARAMS["dataset_params"]["train_transforms"] if name != "Normalize"]
SETS = [[name] for name in NAMES] + [
    [each for each in NAMES if each != left] for left in ("MultiCrop", "RandomResizedCrop")
]


@pytest.mark.parametrize("executor", ["host", "dali"])
@pytest.mark.parametrize("names", SETS, ids=[*NAMES, "all but MultiCrop", "all but RandomResizedCrop"])
def test_the_studys_transforms_run_alone_and_together(names: list[str], executor: Literal["host", "dali"]) -> None:
    # With its own default parameters; images of one size, as what ends in no crop needs.
    tables = {name: table | {"apply": name in names} for name, table in TABLES.items()}
    made = (
        transform_of(operators(Keys(tables | {"Normalize": True})), *CONSTANTS["APTOS2019"])
        if ({"Resize", "CenterCrop", "RandomCrop", "RandomResizedCrop", "MultiCrop"} & set(names))
        else transform_of([{"op": "CenterCrop", "size": 256}, *operators(Keys(tables))], *CONSTANTS["APTOS2019"])
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (256, 256, 3), np.uint8).tobytes() for _ in range(6)]
    sizes, zeros = np.full((6, 2), 256), np.zeros(6, np.int64)
    drawn = made.draw(DrawKeys(3, zeros, np.arange(6, dtype=np.uint64), zeros), *sizes.T)
    if executor == "host":
        runner: Any = (HostViews if isinstance(made, Views) else HostExecutor)(made)  # type: ignore[arg-type]
    else:
        runner = DaliExecutor(made, batch=6, raw=True)
    pixels, failures = runner.run(images, ["raw"] * 6, sizes, drawn)
    runner.close()
    views = pixels if isinstance(pixels, tuple) else (pixels,)
    assert not failures and len(views) == (8 if "MultiCrop" in names else 1)
    for view, size in zip(views, made.sizes, strict=True):
        assert view.shape == (6, 3, *size) and torch.isfinite(view).all() and view.std() > 0.1


TABLES = PARAMS["dataset_params"]["train_transforms"]
TABLES = {name: table for name, table in TABLES.items() if name != "Normalize"}
