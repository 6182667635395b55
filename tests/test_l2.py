"""L2: distances by hand, kinds of tensors, groups that touch their own keys alone."""

import numpy as np
import pytest
import timm
import torch

from analysis.changes import KINDS, change, changes, kinds_of_keys
from train.layers import layer_groups


@pytest.fixture(scope="module")
def deit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=32)


def test_change_by_hand():
    result = change([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 1.0])])
    assert result.absolute == 3
    assert result.relative == pytest.approx(0.6)
    assert result.per_sqrt_parameter == pytest.approx(3 / np.sqrt(2))
    assert result.cosine == pytest.approx(13 / (5 * np.sqrt(10)))
    assert result.study == pytest.approx(1.5)


def test_several_tensors_are_one_vector():
    start, end = [torch.zeros(3), torch.ones(2, 2)], [torch.ones(3), torch.zeros(2, 2)]
    result = change(start, end)
    assert (result.parameters, result.absolute, result.relative) == (
        7,
        pytest.approx(np.sqrt(7)),
        pytest.approx(np.sqrt(7) / 2),
    )
    assert np.isnan(change([torch.zeros(3)], [torch.ones(3)]).relative)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\)"):
        change([torch.zeros(3)], [torch.zeros(4)])


def test_identical_weights_give_zero(deit):
    state = deit.state_dict()
    table = changes(state, state, layer_groups(deit), kinds_of_keys(deit))
    assert {row["all"].absolute for row in table.values()} == {0.0}
    assert all(row["all"].cosine == pytest.approx(1) for row in table.values())


def test_a_group_answers_for_its_own_keys_alone(deit):
    groups, start = layer_groups(deit), deit.state_dict()
    for number, group in enumerate(groups):
        end = {key: value + (number + 1 if key in groups[group] else 0) for key, value in start.items()}
        table = changes(start, end, groups, kinds_of_keys(deit))
        assert [name for name, row in table.items() if row["all"].absolute > 0] == [group]
        assert table[group]["all"].per_sqrt_parameter == pytest.approx(number + 1, rel=1e-5)


def test_kinds_of_a_transformer_and_a_cnn(deit):
    kinds = kinds_of_keys(deit)
    assert kinds["blocks.0.norm1.weight"] == kinds["norm.bias"] == "norms"
    assert kinds["blocks.0.attn.qkv.bias"] == kinds["patch_embed.proj.bias"] == "biases"
    assert kinds["cls_token"] == kinds["pos_embed"] == kinds["blocks.0.mlp.fc1.weight"] == "weights"
    lite = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    kinds = kinds_of_keys(lite)
    assert kinds["bn1.weight"] == kinds["bn1.bias"] == "norms"
    assert kinds["bn1.running_mean"] == kinds["bn1.num_batches_tracked"] == "buffers"
    assert set(kinds.values()) == set(KINDS)


def test_kinds_add_up_and_counters_have_no_distance():
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    end = {key: value + 1 for key, value in start.items()}
    for row in changes(start, end, layer_groups(model), kinds_of_keys(model)).values():
        parts = [row[kind].absolute ** 2 for kind in ("weights", "biases", "norms") if kind in row]
        assert row["all"].absolute ** 2 == pytest.approx(sum(parts))
        assert row["all"].per_sqrt_parameter == pytest.approx(1, rel=1e-5)


def test_states_of_two_models_are_refused(deit):
    state = deit.state_dict()
    other = {key: value for key, value in state.items() if key != "cls_token"}
    with pytest.raises(ValueError, match="differ in 1 keys \\('cls_token' first\\)"):
        changes(state, other, layer_groups(deit), kinds_of_keys(deit))
