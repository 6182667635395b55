"""Attention distance, rollout and Grad-CAM against closed forms and models whose maps are known."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from analysis.attention_maps import (
    attending,
    attention_distance,
    attention_modules,
    patch_distances,
    prefix_share,
    rollout,
)
from analysis.saliency_maps import attention_map, grad_cam, last_map, way_of
from train.layers import taps
from train.models import create


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    return create("deit_tiny_patch16_224", 3, 3, img_size=48, seed=0).eval()


def test_distances_are_scipys_in_pixels():
    places = [(y * 16.0, x * 8.0) for y in range(3) for x in range(4)]
    np.testing.assert_allclose(patch_distances((3, 4), (16, 8)).numpy(), cdist(places, places))


def test_heads_that_look_at_themselves_and_everywhere():
    distances = patch_distances((3, 3), (16, 16))
    weights = torch.zeros(1, 2, 10, 10)
    weights[0, 0] = torch.eye(10)
    weights[0, 1] = 0.1
    found = attention_distance(weights, distances)
    assert found[0].tolist() == pytest.approx([0, float(distances.mean())])
    assert prefix_share(weights, 9)[0].tolist() == pytest.approx([0, 0.1])


def test_weights_are_those_of_the_forward_pass(vit):
    """With the kept weights the attention's own output comes out again, and nothing stays changed."""
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    name, module = next(iter(attention_modules(vit).items()))
    before = [each.fused_attn for each in attention_modules(vit).values()]
    seen = {}
    handle = module.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.inference_mode():
        expected = vit(images)
        with attending(vit) as weights:
            assert torch.allclose(vit(images), expected, atol=1e-5)
        x, heads = seen["x"], module.num_heads
        v = module.qkv(x).reshape(2, 10, 3, heads, -1).permute(2, 0, 3, 1, 4)[2]
        again = module.proj((weights[name] @ v).transpose(1, 2).reshape(2, 10, -1))
    handle.remove()
    assert torch.allclose(again, seen["y"], atol=1e-5)
    assert all(torch.allclose(each.sum(-1), torch.ones(1), atol=1e-5) for each in weights.values())
    assert [each.fused_attn for each in attention_modules(vit).values()] == before
    assert not any(each.attn_drop._forward_pre_hooks for each in attention_modules(vit).values())


def test_rollout_by_hand():
    uniform, one = torch.full((1, 2, 4, 4), 0.25), torch.eye(4).expand(1, 2, 4, 4)
    assert torch.allclose(rollout([uniform], 3, cls_row=True)[0], torch.full((3,), 1 / 3, dtype=torch.float64))
    focus = torch.zeros(1, 1, 4, 4)
    focus[0, 0, :, 2] = 1
    found = rollout([focus, one[:, :1]], 3, cls_row=True)[0]
    np.testing.assert_allclose(found, [0, 1, 0])  # the class token looks at token 2, the second patch
    mean = rollout([one], 4, cls_row=False)[0]
    np.testing.assert_allclose(mean, [0.25] * 4)


def test_grad_cam_is_cam_where_a_linear_head_reads_a_mean():
    """For mean pooling and a linear head Grad-CAM is relu of CAM (Zhou et al., 2016) over the number of places."""
    model = create("resnet18", 3, 3, img_size=64, seed=0).eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 1, 2, 1])
    name, tap = last_map(model, taps(model), images)
    assert name == "layer4.1"
    found = grad_cam(model, tap, images, classes)
    with torch.inference_mode():
        maps = model.forward_features(images)
        expected = torch.relu(torch.einsum("bk,bkhw->bhw", model.fc.weight[classes], maps)) / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.shape == (4, 2, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_family_has_its_way(vit):
    swin = create("swin_tiny_patch4_window7_224", 3, 3, img_size=64, seed=0).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert (way_of(vit), way_of(swin)) == ("rollout", "grad-cam")
    _, tap = last_map(swin, taps(swin), images)
    assert grad_cam(swin, tap, images, torch.tensor([0, 1])).shape == (2, 2, 2)
    found = attention_map(vit, images[:, :, :48, :48])
    assert found.shape == (2, 3, 3)
    np.testing.assert_allclose(found.sum((1, 2)), 1)
    with pytest.raises(ValueError, match="has no blocks with attention over all patches: this is for ViTs"):
        attention_modules(swin)
