"""Models by name, weights from files, and errors that help."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from train.layers import classifier_names
from train.lite0 import timm_name, write_lite0
from train.models import create, input_size, recipe_of, report_of, study_name
from train.weights import adapt_channels, read_state


def saved(path, name="test_resnet", num_classes=7, seed=1, nest=None, prefix="", **options):
    state = {
        prefix + key: tensor for key, tensor in create(name, num_classes, seed=seed, **options).state_dict().items()
    }
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({nest: state, "epoch": 3} if nest else state, path)
    return path


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_seed_alone_decides_the_default_initialisation():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = create("test_vit", 3, img_size=32, seed=4)
    torch.rand(3)
    assert equal(one.state_dict(), create("test_vit", 3, img_size=32, seed=4).state_dict())
    assert not equal(one.state_dict(), create("test_vit", 3, img_size=32, seed=5).state_dict())
    torch.set_rng_state(state)
    create("test_vit", 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert report_of(one) is None


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64), (4, 48)])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_any_number_of_channels_and_any_size(name, channels, size):
    model = create(name, 3, channels, img_size=size)
    assert input_size(model) == (channels, size, size)
    assert model.eval()(torch.rand(2, channels, size, size)).shape == (2, 3)
    assert recipe_of(model).num_classes == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_file_go_in_and_another_class_count_leaves_the_head_fresh(tmp_path, suffix):
    path = saved(tmp_path / f"donor{suffix}")
    donor = read_state(path)
    whole = create("test_resnet", 7, weights=path)
    assert equal(whole.state_dict(), donor) and not report_of(whole).fresh_head
    model = create("test_resnet", 3, weights=path, seed=9)
    report = report_of(model)
    assert report.fresh_head and not report.missing and not report.unexpected
    fresh = create("test_resnet", 3, seed=9).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if key.startswith("fc.") else donor)[key])
    assert "classifier fresh" in report.text() and "0 missing" not in report.text()


@pytest.mark.parametrize(
    ("nest", "prefix"), [("state_dict", "module."), ("model", ""), ("teacher", "backbone."), (None, "module.encoder.")]
)
def test_nests_and_prefixes_are_undone(tmp_path, nest, prefix):
    path = saved(tmp_path / "donor.pth", nest=nest, prefix=prefix)
    assert equal(create("test_resnet", 7, weights=path).state_dict(), create("test_resnet", 7, seed=1).state_dict())


def test_position_embeddings_are_resampled_to_another_image_size(tmp_path):
    path = saved(tmp_path / "donor.pth", "test_vit", img_size=160)
    model = create("test_vit", 7, weights=path, img_size=64)
    assert not report_of(model).missing and model.pos_embed.shape[1] == 1 + 16
    assert torch.equal(model.blocks[0].mlp.fc1.weight, read_state(path)["blocks.0.mlp.fc1.weight"])


def test_grey_images_meet_a_net_of_three_channels_by_an_explicit_choice(tmp_path):
    path = saved(tmp_path / "donor.pth")
    three = read_state(path)["conv1.0.weight"]
    for how, expected in (("sum", three.sum(1, keepdim=True)), ("red", three[:, :1])):
        model = create("test_resnet", 7, 1, weights=path, first_conv=how)
        torch.testing.assert_close(model.state_dict()["conv1.0.weight"], expected)
        assert report_of(model).adapted == ("conv1.0.weight",)
        mean, std = report_of(model).first_conv["conv1.0.weight"]
        assert (mean, std) == pytest.approx((three.double().mean().item(), three.double().std().item()))


def test_adapted_channels_answer_as_timms_do_and_grey_ones_keep_their_answer():
    weight = torch.rand(4, 3, 3, 3)
    torch.testing.assert_close(adapt_channels(weight, 5), timm.models.adapt_input_conv(5, weight))
    grey, image = torch.rand(4, 1, 3, 3), torch.rand(1, 1, 8, 8)
    spread = adapt_channels(grey, 3)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(image, grey), conv(image.repeat(1, 3, 1, 1), spread))


def test_a_poor_fit_is_refused_with_counts_and_examples(tmp_path):
    path = saved(tmp_path / "donor.pth", "test_efficientnet")
    with pytest.raises(
        ValueError,
        match=r"donor\.pth do not fit ResNet: \d+ of its \d+ backbone tensors match; missing .*conv1\.0\.weight",
    ):
        create("test_resnet", 7, weights=path)


def test_a_few_missing_and_unexpected_tensors_are_reported(tmp_path):
    state = create("test_vit", 7, img_size=32).state_dict()
    del state["blocks.0.norm1.bias"]
    path = tmp_path / "donor.safetensors"
    save_file({**state, "extra.weight": torch.ones(2)}, path)
    report = report_of(create("test_vit", 7, img_size=32, weights=path))
    assert report.missing == ("blocks.0.norm1.bias",) and report.unexpected == ("extra.weight",)
    assert "1 missing (blocks.0.norm1.bias)" in report.text() and "1 unexpected (extra.weight)" in report.text()


def test_files_that_are_no_weights_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "text.pth").write_text("no")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("missing.pth", "does not exist"),
        ("evil.pth", "cannot be read safely"),
        ("text.safetensors", "cannot be read safely"),
        ("text.pth", "cannot be read safely"),
        ("list.pth", "holds no state dict"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            create("test_resnet", 2, weights=tmp_path / name)
        assert "\n" not in str(caught.value)


def test_pretrained_weights_come_through_timm(monkeypatch):
    published = create("test_resnet", 1000, seed=3).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    model = create("test_resnet", 4, 1, pretrained=True)
    report = report_of(model)
    assert report.source == "timm test_resnet.r160_in1k" and report.fresh_head and not report.missing
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    torch.testing.assert_close(model.state_dict()["conv1.0.weight"], published["conv1.0.weight"].sum(1, keepdim=True))


def test_pretrained_weights_out_of_reach_are_an_error_that_tells_of_files(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"weights of test_resnet could not be had \(.*\); go online or give a file with --weights FILE",
    ) as caught:
        create("test_resnet", 4, pretrained=True)
    assert "\n" not in str(caught.value)


def test_a_model_without_published_weights_says_so():
    name = "lcnet_035"
    assert not timm.models.is_model_pretrained(name)
    with pytest.raises(ValueError, match=f"no pretrained weights of {name}.*--weights FILE"):
        create(name, 2, pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "timm knows no model 'resnet5O'; nearest: resnet50"),
        ("deit_smal_patch16_224", "nearest: deit_small_patch16_224"),
        ("resnet50.nonsense", "no weights 'nonsense' of resnet50; its tags: .*tv_in1k"),
        ("focal_tiny", "no Focal Transformer.*focalnet_.* is another architecture"),
    ],
)
def test_unknown_names_are_answered_with_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        create(name, 2)


def test_sizes_that_do_not_fit_the_patches_are_refused():
    with pytest.raises(ValueError, match="patches of 16 pixels: image size 50 does not fit, 48 or 64 do"):
        create("deit_tiny_patch16_224", 2, img_size=50)
    with pytest.raises(ValueError, match="at least one class and one channel"):
        create("test_vit", 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("resnet50",), "resnet50.tv_in1k"),
        (("inception_v3",), "inception_v3.tv_in1k"),
        (("deit_tiny",), "deit_tiny_patch16_224.fb_in1k"),
        (("deit_small",), "deit_small_patch16_224.fb_in1k"),
        (("deit_base",), "deit_base_patch16_224.fb_in1k"),
        (("deit_small5b",), "deit_small5b"),
        (("swin_tiny",), "swin_tiny_patch4_window7_224.ms_in1k"),
        (("swin_small",), "swin_small_patch4_window7_224.ms_in1k"),
        (("swin_base",), "swin_base_patch4_window7_224.ms_in1k"),
        (("deit_small", 16, "dino"), "vit_small_patch16_224.dino"),
        (("deit_small", 8, "dino"), "vit_small_patch8_224.dino"),
        (("deit_base", 8, "dino"), "vit_base_patch8_224.dino"),
    ],
)
def test_the_studys_names_mean_full_timm_tags(arguments, expected):
    name = study_name(arguments[0], **dict(zip(("patch_size", "pretrained_type"), arguments[1:], strict=False)))
    assert name == expected
    assert name == "deit_small5b" or name in timm.list_pretrained(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "focal_small"}, "no Focal Transformer"),
        ({"backbone": "resnet50", "pretrained_type": "dino"}, "no DINO weights of resnet50"),
        ({"backbone": "deit_small", "patch_size": 8}, "no supervised weights of deit_small with patch size 8"),
        ({"backbone": "deit_tiny", "pretrained_type": "dino"}, "no DINO weights of deit_tiny"),
        ({"backbone": "resnet51"}, r"nearest: .*resnet50"),
        ({"backbone": "resnet50", "pretrained_type": "moco"}, "known: supervised, dino"),
    ],
)
def test_what_timm_lacks_of_the_study_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        study_name(**arguments)


def test_the_study_with_five_blocks_takes_the_first_five_of_deit_small(monkeypatch):
    published = timm.create_model("deit_small_patch16_224").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    model = create("deit_small5b", 3, pretrained=True)
    assert len(model.blocks) == 5 and not report_of(model).missing
    assert torch.equal(model.blocks[4].mlp.fc1.weight, published["blocks.4.mlp.fc1.weight"])


def test_a_model_made_elsewhere_has_no_recipe():
    with pytest.raises(ValueError, match="not made by"):
        recipe_of(timm.create_model("test_vit"))


def test_lite0_is_converted_strictly_and_starts_a_model(tmp_path):
    path = write_lite0(tmp_path / "weights" / "lite0.safetensors")
    state = load_file(path)
    assert len(state) == 296 and [file.name for file in path.parent.iterdir()] == ["lite0.safetensors"]
    timm.create_model("tf_efficientnet_lite0").load_state_dict(state, strict=True)
    report = report_of(create("tf_efficientnet_lite0", 5, weights=path))
    assert len(report.matched) == 294 and report.fresh_head and not report.missing and not report.unexpected


def test_lite0_names():
    assert timm_name("_blocks.0._depthwise_conv.weight") == "blocks.0.0.conv_dw.weight"
    assert timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert timm_name("_blocks.2._bn0.running_var") == "blocks.1.1.bn1.running_var"
    assert timm_name("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"
    assert timm_name("_fc.bias") == "classifier.bias"
    for name in ("_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "fc.weight"):
        with pytest.raises(ValueError, match="is not known"):
            timm_name(name)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_the_classifier_begins_as_a_plain_linear_layer(name: str) -> None:
    # timm draws an EfficientNet's from a range that knows only the number of classes: ±.45 for five.
    model = create(name, 5, seed=3)
    (head,) = (model.get_submodule(path) for path in classifier_names(model))
    weight = next(module for module in head.modules() if isinstance(module, torch.nn.Linear)).weight.detach()
    bound = weight.shape[1] ** -0.5
    assert 0.9 * bound < float(weight.abs().max()) <= bound
