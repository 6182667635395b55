"""Hooks leave nothing behind; pooling reads each family's layout."""

import pytest
import torch
from torch import nn

from train.hooks import Layout, evaluating, first_tensor, layout_of, pool, tapped
from train.layers import InputOf, embedding_tap, taps
from train.models import create


def small():
    return create("test_resnet", 3, img_size=32)


def number_of_hooks(model):
    """Beyond the model's own: one that repeats grey images for a net of three channels sits on the whole."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules() if m is not model)


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = small()
    with tapped(taps(model)) as outputs:
        model(torch.rand(2, 3, 32, 32))
        assert number_of_hooks(model) == len(taps(model)) == len(outputs)
    assert number_of_hooks(model) == 0
    with pytest.raises(RuntimeError, match="on purpose"), tapped(taps(model)):
        raise RuntimeError("on purpose")
    assert number_of_hooks(model) == 0
    with pytest.raises(AttributeError), tapped({"good": model, "bad": "no module"}):
        pass
    assert number_of_hooks(model) == 0


def test_taps_see_outputs_and_the_embedding_is_the_classifiers_input():
    model = small()
    found = {**taps(model), "embedding": embedding_tap(model)}
    with evaluating(model), torch.inference_mode(), tapped(found) as outputs:
        logits = model(torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(outputs["fc"], logits, rtol=0, atol=0)
        torch.testing.assert_close(model.get_classifier()(outputs["embedding"]), logits)


def test_maps_pool_to_their_spatial_mean():
    maps = torch.rand(2, 5, 3, 4)
    torch.testing.assert_close(pool(maps), maps.mean((2, 3)))
    last = maps.permute(0, 2, 3, 1)
    torch.testing.assert_close(pool(last, layout=Layout(channels_last=True)), maps.mean((2, 3)))
    square = torch.rand(2, 5, 4, 4)  # tells itself, whatever the family notes
    for layout in (Layout(), Layout(channels_last=True)):
        torch.testing.assert_close(pool(square, layout=layout), square.mean((2, 3)))
        torch.testing.assert_close(pool(square.permute(0, 2, 3, 1), layout=layout), square.mean((2, 3)))
    vectors = torch.rand(2, 5)
    assert pool(vectors) is vectors


def test_tokens_pool_to_cls_mean_or_both():
    tokens = torch.rand(2, 11, 6)
    layout = Layout(prefix_tokens=2, has_cls=True, patches=9)
    torch.testing.assert_close(pool(tokens, layout=layout), tokens[:, 0])
    torch.testing.assert_close(pool(tokens, "mean", layout), tokens[:, 2:].mean(1))
    torch.testing.assert_close(pool(tokens, "both", layout), torch.cat([tokens[:, 0], tokens[:, 2:].mean(1)], 1))
    torch.testing.assert_close(pool(tokens), tokens.mean(1))  # no class token: all are patches
    patches = tokens[:, 2:]  # before the class token joins
    torch.testing.assert_close(pool(patches, layout=layout), patches.mean(1))
    torch.testing.assert_close(pool(tokens[:, :1], layout=layout), tokens[:, 0])


def test_pooling_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="known: auto, cls, mean, both"):
        pool(torch.rand(2, 3), "max")
    with pytest.raises(ValueError, match="2, 3 or 4 dimensions"):
        pool(torch.rand(2, 3, 4, 5, 6))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit_tiny_patch16_224", Layout(False, 1, True, 4)),
        ("test_resnet", Layout()),
        ("swin_tiny_patch4_window7_224", Layout(True, 0, False, 64)),
    ],
)
def test_layouts_of_families(name, expected):
    assert layout_of(create(name, 2, img_size=32)) == expected


def test_every_modules_mode_comes_back_also_after_an_error():
    model = small().train()
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("on purpose")
    assert [module.training for module in model.modules()] == before


def test_first_tensor_looks_into_tuples_lists_and_dicts():
    tensor = torch.ones(1)
    assert first_tensor((None, [tensor, torch.zeros(1)])) is tensor
    assert first_tensor({"x": tensor}) is tensor
    with pytest.raises(ValueError, match="without a tensor"):
        first_tensor((1, 2))


def test_input_of_gives_what_goes_in():
    layer = nn.Linear(3, 2)
    given = torch.rand(1, 3)
    with tapped({"in": InputOf(layer)}) as outputs:
        layer(given)
    assert outputs["in"] is given
