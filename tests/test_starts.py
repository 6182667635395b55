"""Starts: what is kept, redrawn, reset and fresh, for each tensor."""

import numpy as np
import pytest
import timm
import torch

from train.layers import classifier_keys, layer_groups
from train.models import create
from train.starts import drawn_like, is_constant, make_start, norm_values

SMALL = [
    "test_resnet",
    "test_vit",
    "test_efficientnet",
    "test_coatnet",
    pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    pytest.param("inception_v3", marks=pytest.mark.slow),
]

# A small model of every module of timm; DeepSeek's smallest has 412 million numbers, and is left out.
FAMILIES = [
    "beit_base_patch16_224", "halonet_h1", "mobileone_s0", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "convnext_atto", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla34", "dpn68", "edgenext_x_small",
    "efficientformer_l1", "efficientformerv2_s0", "mobilenet_edgetpu_v2_xs", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_s12",
    "focalnet_tiny_srf", "gcvit_xtiny", "gemma4_vit_167m", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0",
    "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_s", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_384_s8", "lowformer_b0",
    "mambaout_femto", "maxvit_pico_rw_256", "caformer_s18", "gmlp_ti16_224", "lcnet_035", "mobilenetv5_base",
    "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_siglip", "nasnetalarge", "nest_tiny",
    "nextvit_small", "nf_regnet_b0", "pit_xs_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny",
    "regnetv_040", "repghostnet_050", "repvit_m1", "res2net50_14w_8s", "resnest14d", "resnet18", "resnetv2_18",
    "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny",
    "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vit_srelpos_small_patch16_224", "samvit_base_patch16",
    "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41",
    "xcit_nano_12_p8_224",
]  # fmt: skip


def pretrained(name="test_vit", seed=7, in_chans=3, num_classes=5, img_size=32, **options):
    """A model whose every learned tensor holds values of its own, as if trained; norms too."""
    model = create(name, num_classes, in_chans, img_size=img_size, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.rand(parameter.shape, generator=generator)  # no normal: values differ from any draw
            parameter.copy_((noise - 0.3) * (0.1 + i % 5))
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.fill_(3.0)
    return model


def started(start, name="test_vit", seed=0, img_size=32, **options):
    model = pretrained(name, img_size=img_size)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = make_start(model, start, seed=seed, loaded=True, **options)
    return before, model.state_dict(), report, model


def same(a, b):
    return torch.equal(a, b)


@pytest.mark.parametrize("name", SMALL)
def test_st_keeps_mean_and_std_of_every_tensor_and_none_of_its_values(name):
    check_st(name, 32)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_timm_has_its_starts(name):
    check_st(name, None)


def test_the_sweep_knows_every_module_of_timm():
    swept = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in FAMILIES}
    assert set(timm.list_modules()) - swept == {"deepseek_vit"}


def check_st(name, img_size):
    before, after, report, model = started("st", name, img_size=img_size)
    norms, head = set(norm_values(model, after)), set(classifier_keys(model))
    learned = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    assert set(report.redrawn) == {key for key in learned - norms - head if before[key].numel() > 1}
    for key in report.redrawn:
        old, new, n = before[key].double(), after[key].double(), before[key].numel()
        spread = old.std().item()
        assert (old == new).float().mean() < 0.01, key
        assert abs(new.mean() - old.mean()) < 5 * spread / np.sqrt(n), key
        assert abs(new.std() - spread) < 5 * spread / np.sqrt(2 * (n - 1)) + 1e-9 or n < 8, key
    assert set(report.redrawn) | set(report.reset) | set(report.kept) | set(report.fresh) == set(after)
    assert len(report.redrawn) + len(report.reset) + len(report.kept) + len(report.fresh) == len(after)


def test_st_covers_tokens_positions_and_relative_position_tables():
    _, _, vit, _ = started("st", "test_vit")
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"} <= set(vit.redrawn)
    _, _, windowed, _ = started("st", "test_coatnet")
    assert sum("relative_position_bias_table" in key for key in windowed.redrawn) == 3
    _, _, scaled, _ = started("st", "test_vit2")
    assert {"reg_token", "blocks.0.ls1.gamma", "blocks.1.ls2.gamma"} <= set(scaled.redrawn)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_norms_are_reset_with_their_buffers(name):
    _, after, report, _ = started("st", name)
    assert report.reset
    for key in report.reset:
        expected = 1 if key.endswith(("weight", "running_var")) else 0
        assert (after[key] == expected).all(), key


def test_a_shared_tensor_belongs_to_the_first_that_has_it():
    def tied(**options):
        model = pretrained("test_vit")
        model.blocks[1].attn.proj = model.blocks[0].attn.proj
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        return before, make_start(model, "st", seed=0, loaded=True, **options), model.state_dict()

    keys = [f"blocks.{i}.attn.proj.weight" for i in (0, 1)]
    before, report, after = tied()
    assert set(keys) <= set(report.redrawn)
    assert same(after[keys[1]], drawn_like(before[keys[0]], 0, keys[0]))
    before, report, after = tied(wt_until="blocks.0")
    assert set(keys) <= set(report.kept) and same(before[keys[0]], after[keys[0]])


def test_st_values_look_normal():
    old = torch.rand(20000)
    new = drawn_like(old, 0, "x").numpy()
    standard = (new - old.mean().item()) / old.std().item()
    for bound, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert abs((np.abs(standard) < bound).mean() - share) < 0.012


def test_constant_and_one_element_tensors_stay():
    model = pretrained("test_resnet")
    key = "conv1.0.weight"
    with torch.no_grad():
        dict(model.named_parameters())[key].fill_(0.25)
    report = make_start(model, "st", seed=0, loaded=True)
    assert key in report.kept and (model.state_dict()[key] == 0.25).all()
    assert is_constant(torch.tensor([3.0])) and is_constant(torch.zeros(4)) and not is_constant(torch.arange(3.0))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_wt_to_n_is_nested(name):
    before, everything, _, model = started("st", name, seed=3)
    groups, head = layer_groups(model), set(classifier_keys(model))
    for n, boundary in enumerate(groups, start=1):
        _, after, report, _ = started("st", name, seed=3, wt_until=boundary)
        assert report.kept_groups == tuple(groups)[:n] and report.redrawn_groups == tuple(groups)[n:]
        for i, keys in enumerate(groups.values()):
            source = before if i < n else everything
            assert all(same(after[key], source[key]) for key in keys if key not in head)


def test_counts_and_names_say_the_same_and_the_ends_are_st_and_wt():
    _, by_name, _, model = started("st", seed=1, wt_until="blocks.1")
    _, by_count, _, _ = started("st", seed=1, wt_until=3)
    _, st, _, _ = started("st", seed=1)
    _, none, _, _ = started("st", seed=1, wt_until=0)
    _, wt, _, _ = started("wt", seed=1)
    _, whole, _, _ = started("st", seed=1, wt_until=len(layer_groups(model)))
    for key in st:
        assert same(by_name[key], by_count[key]) and same(st[key], none[key]) and same(wt[key], whole[key])


def test_wt_keeps_the_backbone_and_the_head_is_the_same_in_every_start_of_a_seed():
    before, wt, report, model = started("wt", seed=5)
    head = set(classifier_keys(model))
    assert set(report.fresh) == head and not report.redrawn and not report.reset
    for key in before:
        assert same(wt[key], before[key]) != (key in head)
    _, st, _, _ = started("st", seed=5)
    _, ri, _, _ = started("ri", seed=5)
    _, other, _, _ = started("ri", seed=6)
    assert all(same(wt[key], st[key]) and same(wt[key], ri[key]) for key in head)
    assert not all(same(ri[key], other[key]) for key in head)


def test_ri_is_the_default_initialisation_by_the_seed_alone():
    _, one, report, _ = started("ri", seed=2)
    torch.manual_seed(99)
    torch.rand(10)
    state = torch.get_rng_state()
    model = pretrained(seed=8)  # other values before
    make_start(model, "ri", seed=2)
    assert all(same(one[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert set(report.fresh) == set(one)


def test_draws_differ_by_seed_and_name_and_repeat():
    tensor = torch.rand(50)
    assert same(drawn_like(tensor, 0, "a"), drawn_like(tensor, 0, "a"))
    assert not same(drawn_like(tensor, 0, "a"), drawn_like(tensor, 0, "b"))
    assert not same(drawn_like(tensor, 0, "a"), drawn_like(tensor, 1, "a"))
    assert drawn_like(tensor.half(), 0, "a").dtype == torch.float16


def test_the_studys_draw_leaves_tokens_and_positions_pretrained():
    before, after, report, _ = started("st", st_variant="study")
    assert {"cls_token", "pos_embed"} <= set(report.kept)
    assert same(before["cls_token"], after["cls_token"]) and same(before["pos_embed"], after["pos_embed"])
    assert {"patch_embed.proj.weight", "blocks.0.mlp.fc1.bias"} <= set(report.redrawn)
    before, after, report, _ = started("st", "test_coatnet", st_variant="study")
    tables = [key for key in after if "relative_position_bias_table" in key]
    assert tables and set(tables) <= set(report.kept)


def test_grey_images_are_drawn_after_the_first_layer_is_adapted(tmp_path):
    donor = pretrained("test_vit")
    path = tmp_path / "donor.pth"
    torch.save(donor.state_dict(), path)
    key, states = "patch_embed.proj.weight", {}
    for how in ("sum", "red"):
        model = create("test_vit", 5, 1, weights=path, img_size=32, first_conv=how)
        adapted = model.state_dict()[key].double()
        states[how] = adapted.clone()
        make_start(model, "st", seed=0)
        drawn = model.state_dict()[key].double()
        assert drawn.shape[1] == 1
        assert abs(drawn.std() / adapted.std() - 1) < 0.1
    three = donor.state_dict()[key].double()
    torch.testing.assert_close(states["sum"], three.sum(1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(states["red"], three[:, :1])
    model = create("test_vit", 5, 1, weights=path, img_size=32, first_conv="red")
    make_start(model, "st", seed=0, st_variant="study")
    assert abs(model.state_dict()[key].double().std() / three.std() - 1) < 0.1  # drawn before it was adapted


@pytest.mark.parametrize("start", ["wt", "st"])
def test_no_start_from_pretrained_weights_is_silently_random(start):
    with pytest.raises(ValueError, match=f"start '{start}' needs pretrained weights.*--weights FILE"):
        make_start(create("test_vit", 2, img_size=32), start, seed=0)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("xt", {}, "unknown start 'xt'; known: wt, st, ri"),
        ("st", {"wt_until": "block.9"}, "unknown layer group 'block.9'; groups: stem, blocks.0"),
        ("st", {"wt_until": 99}, r"99 layer groups asked for"),
        ("ri", {"wt_until": 1}, "goes with start 'st'"),
        ("st", {"st_variant": "other"}, "known: full, study"),
    ],
)
def test_bad_input_is_answered_and_changes_nothing(start, options, message):
    model = pretrained()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        make_start(model, start, seed=0, loaded=True, **options)
    assert all(same(before[key], tensor) for key, tensor in model.state_dict().items())


def test_the_report_says_where_wt_ends():
    _, _, report, _ = started("st", wt_until="blocks.2")
    assert "WT up to blocks.2, ST beyond" in report.text()
