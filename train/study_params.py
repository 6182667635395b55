"""The published study's params.json, read with its meaning: what became of each key stands in docs/params.md.

Every key is taken, refused in one line, or named in a note with what to do instead; none is passed over in silence.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shards.transforms import transform_of
from train.models import build, study_name
from train.study_keys import Keys
from train.study_transforms import final_size, operators

# Mean and std of the study's constants, on the 0..1 scale.
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "APTOS2019": ((0.415, 0.221, 0.073), (0.275, 0.150, 0.081)),
    "ISIC2019": ((0.66776717, 0.52960888, 0.52434725), (0.22381877, 0.20363036, 0.21538623)),
    "CheXpert": ((0.503,), (0.292,)),
    "DDSM": ((0.286,), (0.267,)),
    "Camelyon": ((0.69991202, 0.53839318, 0.69108667), (0.2308955, 0.27435492, 0.20865005)),
}
PLACEHOLDERS = ("/path_to_data_dir", "/path_to_save_dir", "define_the_model_name", "DEFINED_BY_MODEL_NAME")
# Keys of lr_finder.grid_search_params
FINDER = {
    "min_pow": "finder_min_pow", "max_pow": "finder_max_pow", "resolution": "finder_resolution",
    "n_epochs": "finder_epochs", "random_lr": "finder_random", "keep_schedule": "finder_keep_schedule",
    "report_intermediate_steps": "finder_intermediate",
}  # fmt: skip
FIRST_DIV = 1e-8  # OneCycleLR without a warm-up begins at this rate


class Translated(NamedTuple):
    """`fields`: config field -> value; `deepspeed`: its flags -> value; `notes`: lines on keys that do nothing here."""

    fields: dict[str, Any]
    deepspeed: dict[str, Any]
    notes: list[str]


def translate(content: Mapping[str, Any], *, exact: bool = False, world: int | None = None) -> Translated:
    """Config fields and DeepSpeed's flags of the content of a params.json.

    exact: the study's own behaviour where ours mends it (its ST draw and first layer). world: GPUs, for its batch size,
    which is that of one GPU (none: what the launcher says).

    Raises ValueError in one line for an unknown key and for what cannot be honoured.
    """
    world = world or int(os.environ.get("WORLD_SIZE", "1"))
    keys, fields, deepspeed, notes = Keys(content), dict[str, Any](), dict[str, Any](), list[str]()
    _dataset(keys.table("dataset_params"), fields, notes)
    _loaders(keys.table("dataloader_params"), world, fields, deepspeed, notes)
    _model(keys.table("model_params"), fields, notes, exact)
    chosen = keys.table("optimization_params")
    _optimization(chosen.table("default"), fields, notes)
    chosen.done()
    _training(keys.table("training_params"), fields, deepspeed, notes)
    _system(keys, notes)
    _finder(keys.table("lr_finder"), fields)
    keys.done()
    if exact:
        fields["study_metrics"] = True
    return Translated(fields, deepspeed, notes)


def _dataset(keys: Keys, fields: dict[str, Any], notes: list[str]) -> None:
    name = keys.get("dataset")
    if name not in CONSTANTS:
        raise keys.fail("dataset", name, f"the study has {', '.join(CONSTANTS)}")
    fields["shards"] = f"data/shards/{name}"
    fields["mean"], fields["std"] = CONSTANTS[name]
    if (raw := keys.get("data_location")) not in (None, *PLACEHOLDERS):
        notes.append(
            f"data_location {raw} is raw: make shards of it once, prep/make_shards.py --dataset {name} --raw …"
        )
    channels = len(fields["mean"])
    fields["train_operators"] = operators(keys.table("train_transforms"), channels)
    fields["eval_operators"] = operators(keys.table("test_transforms"), channels)
    if operators(keys.table("val_transforms"), channels) != fields["eval_operators"]:
        raise keys.fail(
            "val_transforms", "another transform than test_transforms", "validation and test share one here"
        )
    keys.done()
    fields["image_size"] = final_size(fields["eval_operators"])
    if len(transform_of(fields["train_operators"], *CONSTANTS[name]).sizes) > 1:
        notes.append("MultiCrop: the loss is the mean of the losses of the views; evaluation takes one view")


def _loaders(keys: Keys, world: int, fields: dict[str, Any], deepspeed: dict[str, Any], notes: list[str]) -> None:
    train = keys.table("trainloader")
    deepspeed["global_batch"] = int(train.get("batch_size", 64)) * world
    fields["threads"], fields["prefetch"] = (
        max(int(train.get("num_workers", 2)), 1),
        int(train.get("prefetch_factor", 2)),
    )
    fields["order"] = "global" if train.get("shuffle", True) else "sequential"
    fields["tail"] = "drop" if train.get("drop_last", True) else "carry"
    plain = ("batch_size", "num_workers", "prefetch_factor", "shuffle", "drop_last", "pin_memory", "persistent_workers")
    train.done(*plain)
    for name in ("valloader", "testloader"):
        keys.table(name).done(*plain)
    keys.done()
    notes.append(
        "dataloader_params: pin_memory, persistent_workers, valloader and testloader change no score: not used"
    )


def _model(keys: Keys, fields: dict[str, Any], notes: list[str], exact: bool) -> None:
    backbone, cnn, transformer = keys.get("backbone_type"), keys.table("cnn_params"), keys.table("transformers_params")
    is_transformer = str(backbone).partition("_")[0] in ("deit", "swin", "focal", "vit")
    kind = (transformer if is_transformer else cnn).get("pretrained_type", "supervised")
    cnn.done("pretrained_type")
    patch, sizes = transformer.get("patch_size", 16), transformer.get("img_size", [224])
    transformer.done("pretrained_type", "is_memory_efficient")
    fields["model"] = study_name(str(backbone), patch_size=int(patch), pretrained_type=kind)
    size = sizes[0] if isinstance(sizes, list) else sizes
    if is_transformer and size != fields["image_size"]:
        raise keys.fail("transformers_params.img_size", sizes, f"the transforms end in {fields['image_size']} pixels")
    wtst = keys.table("wtst_init")
    until = wtst.get("transfer_up_to_layer", -2)
    fields["start"] = "st" if wtst.get("apply", False) else "wt" if keys.get("pretrained", True) else "ri"
    wtst.done()
    if fields["start"] == "st":
        fields["st_variant"] = "study" if exact else "full"
        fields["wt_until"] = boundary(fields["model"], int(until))
    fields["first_conv"] = "red" if exact else "sum"
    fields["freeze_backbone"] = bool(keys.get("freeze_backbone", False))
    keys.done("pretrained")
    if not exact:
        notes.append("starts and first layer mend the study's (docs/params.md): --study-exact takes its own")


def boundary(model: str, n: int) -> str | None:
    """`wt_until` of transfer_up_to_layer: the last layer group that stays pretrained; None: none does.

    -2 nothing; -1 and 0 the stem (of Inception and Swin too); 1.. the stage of a ResNet, the step of an Inception, 0..
    the block of a transformer.
    """
    import torch

    from train.layers import layer_groups
    from train.models import Recipe

    with torch.device("meta"):
        recipe = Recipe("deit_small_patch16_224", 2, depth=5) if model == "deit_small5b" else Recipe(model, 2)
        names = list(layer_groups(build(recipe, 0)))
    if n < -1:
        return None
    if any(name.startswith("layer1") for name in names):
        found = [name for name in names if name.partition(".")[0] in {f"layer{i}" for i in range(1, n + 1)}]
    elif any(name.startswith("Mixed") for name in names):
        steps = {1: "Conv2d_3b_1x1", 2: "Conv2d_4a_3x3", 3: "Mixed_5", 4: "Mixed_6", 5: "Mixed_7"}
        found = [name for name in names if any(part in name for i, part in steps.items() if i <= n)]
    else:
        blocks = [name for name in names if "blocks." in name]
        found = blocks[: n + 1]
    return found[-1] if found else names[0]


def _optimization(keys: Keys, fields: dict[str, Any], notes: list[str]) -> None:
    optimizer = keys.table("optimizer")
    fields["optimizer"] = str(optimizer.get("type", "Adam")).lower()
    fields["autoscale_lr"] = bool(optimizer.get("autoscale_lr", False))
    arguments = dict(optimizer.get("params", {}))
    fields["lr"], fields["weight_decay"] = arguments.pop("lr", 1e-4), arguments.pop("weight_decay", 0.0)
    fields["optimizer_args"] = arguments
    optimizer.done()
    lars = keys.table("LARS_params")
    fields["lars"] = bool(lars.get("use", False))
    fields["lars_from_batch"] = lars.get("batch_act_thresh", 256)
    fields["lars_eps"], fields["lars_trust"] = lars.get("eps", 1e-8), lars.get("trust_coef", 0.001)
    lars.done()
    _schedule(keys.table("scheduler"), fields, notes)
    keys.done()


def _schedule(keys: Keys, fields: dict[str, Any], notes: list[str]) -> None:
    given = keys.get("type") or []
    kinds = [kind for kind in (given if isinstance(given, list) else [given]) if kind is not None]
    after = [kind for kind in kinds if kind != "LinearWarmup"]
    named = {"ReduceLROnPlateau": "plateau", "MultiStepLR": "multistep", "OneCycleLR": "onecycle"}
    named["CosineAnnealingLR"] = "cosine"
    if len(after) > 1 or any(kind not in named for kind in after):
        raise keys.fail("type", given, f"LinearWarmup and at most one of {', '.join(named)}")
    params = keys.table("params")
    warm = params.table("LinearWarmup")
    iterations, epochs = warm.get("warmup_iters", 0), warm.get("warmup_epochs", 0)
    warm.done()
    fields["warmup_steps"] = iterations if "LinearWarmup" in kinds else 0
    if "LinearWarmup" in kinds and epochs:
        fields["warmup_epochs"] = epochs
    fields["schedule"] = named[after[0]] if after else "constant"
    plateau, steps = params.table("ReduceLROnPlateau"), params.table("MultiStepLR")
    cycle, cosine = params.table("OneCycleLR"), params.table("CosineAnnealingLR")
    mode, factor, patience = plateau.get("mode", "max"), plateau.get("factor", 0.1), plateau.get("patience", 10)
    least, verbose = plateau.get("min_lr", 0.0), plateau.get("verbose", False)
    if fields["schedule"] == "plateau":
        if mode != "max":
            raise plateau.fail("mode", mode, "the target metrics are better the higher: give max")
        fields |= {"plateau_factor": factor, "plateau_patience": patience, "min_lr": least}
        if verbose:
            notes.append("ReduceLROnPlateau.verbose: torch has it no more, and the log shows every rate: not used")
    milestones, gamma = steps.get("milestones", []), steps.get("gamma", 0.1)
    if fields["schedule"] == "multistep":
        fields |= {"milestones": milestones, "gamma": gamma}
    lowest = cosine.get("eta_min", 0.0)
    if fields["schedule"] == "cosine":
        fields["min_lr"] = lowest
    first = 1.0 if "LinearWarmup" in kinds else fields["lr"] / FIRST_DIV
    found = {"pct_start": cycle.get("pct_start", 0.3), "anneal": cycle.get("anneal_strategy", "cos")}
    found |= {"div_factor": cycle.get("div_factor", first), "final_div_factor": cycle.get("final_div_factor", 1e4)}
    if fields["schedule"] == "onecycle":
        fields |= found
    for table in (plateau, steps, cycle, cosine):
        table.done()
    params.done()
    keys.done()


def _training(keys: Keys, fields: dict[str, Any], deepspeed: dict[str, Any], notes: list[str]) -> None:
    fields["epochs"], fields["val_every"] = keys.get("epochs", 10), keys.get("val_every", 1.0)
    fields["log_every"], fields["tensorboard"] = keys.get("log_every", 25), bool(keys.get("use_tensorboard", False))
    deepspeed["gradient_clipping"] = float(keys.get("grad_clipping", 0.0) or 0.0)
    deepspeed["precision"] = "fp16" if keys.get("use_mixed_precision", False) else "fp32"
    name, place = keys.get("model_name"), keys.get("save_dir")
    if name not in (None, *PLACEHOLDERS):
        fields["name"] = name
    if place not in (None, *PLACEHOLDERS):
        fields["out"] = place
    folder = Path(fields.get("out", "runs")) / str(name)
    if keys.get("restore_session", False):
        raise keys.fail("restore_session", True, f"go on with --resume {folder}")
    if keys.get("restore_only_model", False):
        weights = folder / "weights" / "best.safetensors"
        raise keys.fail("restore_only_model", True, f"set it false and give --start wt --weights {weights}")
    if not keys.get("save_best_model", True):
        notes.append("training_params.save_best_model false: the best weights are kept all the same")
    for key in ("knn_eval", "log_embeddings"):
        fields[key] = bool(keys.get(key, False))
    if fields["log_embeddings"] and not fields["tensorboard"]:
        notes.append("training_params.log_embeddings: maps lie in TensorBoard, which use_tensorboard false leaves out")
    keys.done()


def _finder(keys: Keys, fields: dict[str, Any]) -> None:
    kind = keys.get("type", "grid_search")
    if kind != "grid_search":
        raise keys.fail("type", kind, "the study has grid_search alone; --lr-finder range is ours")
    grid = keys.table("grid_search_params")
    for theirs, mine in FINDER.items():
        if (value := grid.get(theirs)) is not None:
            fields[mine] = value
    grid.done()
    keys.done()


def _system(keys: Keys, notes: list[str]) -> None:
    system = keys.table("system_params")
    which, every, gpu = system.get("which_GPUs"), system.get("use_all_GPUs"), system.get("use_GPU", True)
    system.done()
    if not gpu:
        notes.append(
            "system_params.use_GPU false: ranks are started by launch.sh: DS_ACCELERATOR=cpu ./launch.sh train …"
        )
    elif which is not None and not every:
        notes.append(f"system_params.which_GPUs: launch.sh chooses: CUDA_VISIBLE_DEVICES={which} ./launch.sh train …")
    log = keys.table("log_params")
    if log.get("project_name") not in (None, "the_name_of_the_project"):
        notes.append("log_params: Weights & Biases is not used; metrics.jsonl and TensorBoard hold the same")
    log.done("run_name")
