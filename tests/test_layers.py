"""Layer groups: they partition the state dict, bear readable names, and each has a module that stands for it."""

import pytest
import timm
import torch
from torch import nn

from train.hooks import evaluating, layout_of, pool, tapped
from train.layers import (
    classifier_keys,
    classifier_names,
    embedding_tap,
    group_index,
    grouping,
    layer_groups,
    taps,
)
from train.models import Recipe, build, input_size

# model, image size for a forward pass, first and last group names, number of groups
MODELS = [
    ("resnet50", 32, ["stem", "layer1.0", "layer1.1"], ["layer4.2", "fc"], 18),
    ("inception_v3", 75, ["stem", "Conv2d_3b_1x1+Conv2d_4a_3x3", "Mixed_5b"], ["Mixed_7c", "fc"], 14),
    ("deit_tiny_patch16_224", 32, ["stem", "blocks.0", "blocks.1"], ["blocks.11", "head"], 14),
    ("swin_tiny_patch4_window7_224", 64, ["patch_embed", "layers.0.blocks.0"], ["layers.3.blocks.1", "head"], 14),
    ("tf_efficientnet_lite0", 32, ["stem", "blocks.0.0", "blocks.1.0"], ["blocks.6.0", "classifier"], 18),
    ("convnext_atto", 32, ["stem", "stages.0.blocks.0"], ["stages.3.blocks.1", "head"], 14),
    ("vit_small_patch14_dinov2", 28, ["stem", "blocks.0"], ["blocks.11", "head"], 14),
]
# the smallest model of other families at a size that they allow; None is their own
FAMILIES = [
    ("vgg11_bn", 32),
    ("densenet121", 32),
    ("mobilenetv3_small_050", 32),
    ("mobilenetv2_035", 32),
    ("regnetx_002", 32),
    ("resnetv2_50", 32),
    ("resnest14d", 64),
    ("res2net50_14w_8s", 64),
    ("dpn48b", 64),
    ("dla46_c", 64),
    ("hrnet_w18_small", 64),
    ("focalnet_tiny_srf", 64),
    ("swinv2_tiny_window8_256", None),
    ("mixer_s32_224", None),
    ("beit_base_patch16_224", None),
    ("cait_xxs24_224", None),
    ("xcit_nano_12_p16_224", None),
    ("coat_lite_tiny", None),
    ("levit_128s", None),
    ("pit_ti_224", None),
    ("pvt_v2_b0", 64),
    ("poolformer_s12", 64),
    ("mobilevit_xxs", 64),
    ("maxvit_pico_rw_256", None),
    ("crossvit_tiny_240", None),
    ("efficientformer_l1", None),
    ("repvit_m0_9", 64),
    ("tiny_vit_5m_224", None),
    ("ghostnet_050", 64),
    ("deit_tiny_distilled_patch16_224", None),
]


def hollow(name):
    """The model without storage: names and shapes are all that groups need."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=5)


def assert_partition(model):
    keys = [key for group in layer_groups(model).values() for key in group]
    assert sorted(keys) == sorted(model.state_dict())


def run_taps(name, size):
    model = build(Recipe(name, 4, img_size=size), 0)
    found = {**taps(model), "embedding": embedding_tap(model)}
    assert list(found)[:-1] == list(layer_groups(model))
    with evaluating(model), torch.inference_mode(), tapped(found) as outputs:
        model(torch.rand(2, *input_size(model)))
    assert list(outputs) and set(outputs) == set(found)
    return {key: pool(output, layout=layout_of(model)) for key, output in outputs.items()}


@pytest.mark.parametrize(("name", "size", "first", "last", "number"), MODELS)
def test_groups_partition_the_state_dict_under_readable_names(name, size, first, last, number):
    model = hollow(name)
    assert_partition(model)
    names = list(layer_groups(model))
    assert len(names) == number
    assert names[: len(first)] == first and names[-len(last) :] == last
    assert grouping(model) == "group_matcher"
    assert list(taps(model)) == names


@pytest.mark.parametrize(("name", "size"), [("tf_efficientnet_lite0", 32), ("deit_tiny_patch16_224", 32)])
def test_every_tap_speaks_and_pools_to_a_vector(name, size):
    assert all(vector.ndim == 2 and len(vector) == 2 for vector in run_taps(name, size).values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [(row[0], row[1]) for row in MODELS] + FAMILIES)
def test_every_family_has_groups_and_taps(name, size):
    model = hollow(name)
    assert_partition(model)
    assert len(layer_groups(model)) >= (3 if grouping(model) == "top-level modules" else 5)
    assert all(vector.ndim == 2 for vector in run_taps(name, size).values())


def test_taps_are_the_last_modules_of_their_groups():
    resnet, vit = hollow("resnet18"), hollow("deit_tiny_patch16_224")
    assert taps(resnet)["stem"] is resnet.maxpool
    assert taps(resnet)["layer2.1"] is resnet.layer2[1]
    assert taps(vit)["stem"] is vit.norm_pre  # after class token and position embedding were added
    assert taps(vit)["blocks.11"] is vit.norm
    assert taps(vit)["blocks.3"] is vit.blocks[3]


def test_groups_hold_buffers_and_tokens_of_their_modules():
    resnet, vit = layer_groups(hollow("resnet18")), layer_groups(hollow("deit_tiny_patch16_224"))
    assert "bn1.running_var" in resnet["stem"] and "bn1.num_batches_tracked" in resnet["stem"]
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(vit["stem"])
    assert {"norm.weight", "blocks.11.mlp.fc1.weight"} <= set(vit["blocks.11"])
    assert vit["head"] == ("head.weight", "head.bias")  # mlp.fc1 and its like are not the head's


class Plain(nn.Module):
    """A family without a matcher."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.last = nn.Linear(4, 2)


def test_without_a_matcher_groups_are_top_level_modules_and_said_so():
    model = Plain()
    groups = layer_groups(model)
    assert grouping(model) == "top-level modules"
    assert list(groups) == ["stem", "last"] and "scale" in groups["stem"]
    assert_partition(model)
    assert taps(model)["stem"] is model.first[-1]  # the same output, also where a family calls the parts one by one


def test_the_classifier_is_known_by_its_keys():
    assert classifier_keys(hollow("resnet18")) == ("fc.weight", "fc.bias")
    assert classifier_names(hollow("swin_tiny_patch4_window7_224")) == ("head.fc",)
    assert classifier_names(hollow("deit_tiny_distilled_patch16_224")) == ("head", "head_dist")
    headless = timm.create_model("resnet18", num_classes=0)
    assert classifier_keys(headless) == ()
    with pytest.raises(ValueError, match="no classifier"):
        embedding_tap(headless)


def test_a_group_is_wanted_by_name_or_count():
    names = ["stem", "blocks.0", "head"]
    assert [group_index(names, wanted) for wanted in ("stem", "head", 0, 3, "2")] == [1, 3, 0, 3, 2]
    with pytest.raises(ValueError, match=r"unknown layer group .block\.0.; groups: stem, blocks\.0, head"):
        group_index(names, "block.0")
    with pytest.raises(ValueError, match=r"4 layer groups asked for.*give 0\.\.3"):
        group_index(names, 4)
