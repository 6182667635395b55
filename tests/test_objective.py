"""The masked loss: any cut has the same sum and gradient. Run: pytest tests/test_objective.py"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from train.config import Training
from train.mixing import Mix, draw_boxes, draw_mix, mix_images
from train.objective import balanced_weights, counted, divisor, loss_sum, stand_ins, total_weight, views_loss


def problem(task: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 3, generator=generator, requires_grad=True)
    valid = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool()
    if task == "single":
        return logits, torch.arange(8) % 3, valid
    labels = torch.randint(0, 2, (8, 3), generator=generator).float()
    labels[0, 1] = labels[3, 2] = float("nan")
    return logits, labels, valid


@pytest.mark.parametrize("task", ["single", "multi"])
def test_equals_torch_on_what_counts(task: str) -> None:
    logits, labels, valid = problem(task)
    mask = counted(labels, valid)
    mean = loss_sum(logits, labels, valid) / mask.sum()
    if task == "single":
        expected = F.cross_entropy(logits[valid], labels[valid])
    else:
        expected = F.binary_cross_entropy_with_logits(logits[mask], labels[mask])
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("task", ["single", "multi"])
def test_masked_rows_have_no_gradient_and_cuts_add_up(task: str) -> None:
    logits, labels, valid = problem(task)
    whole = torch.autograd.grad(loss_sum(logits, labels, valid), logits)[0]
    assert (whole[~valid] == 0).all()
    assert (whole[valid].abs().sum(1) > 0).all()
    parts = [slice(0, 3), slice(3, 5), slice(5, 8)]
    summed = sum((loss_sum(logits[p], labels[p], valid[p]) for p in parts), torch.tensor(0.0))
    torch.testing.assert_close(torch.autograd.grad(summed, logits)[0], whole)


def test_label_smoothing_is_torchs() -> None:
    logits, labels, _ = problem("single")
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss_sum(logits, labels, torch.ones(8).bool(), label_smoothing=0.1), expected)


def test_mixup_equals_soft_labels() -> None:
    logits, labels, _ = problem("single")
    own = torch.tensor([0.3, 0.8, 1.0, 0.5]).repeat_interleave(2)
    soft = F.one_hot(labels, 3).float()
    partner = soft.view(4, 2, 3).flip(1).reshape(8, 3)
    mixed = own[:, None] * soft + (1 - own[:, None]) * partner
    expected = F.cross_entropy(logits, mixed, reduction="sum")
    torch.testing.assert_close(loss_sum(logits, labels, torch.ones(8).bool(), mix=Mix(own)), expected)


def test_mixup_leaves_pairs_with_a_masked_half_alone() -> None:
    logits, labels, valid = problem("multi")
    own = torch.full((8,), 0.4)
    own[~(valid.view(4, 2).all(1).repeat_interleave(2))] = 1.0
    loss = loss_sum(logits, labels, valid, mix=Mix(own))
    alone = valid & (own == 1)
    gradient = torch.autograd.grad(loss, logits)[0]
    plain = torch.autograd.grad(loss_sum(logits, labels, valid), logits)[0]
    torch.testing.assert_close(gradient[alone], plain[alone])
    assert torch.isfinite(gradient).all()
    images = torch.arange(8.0)[:, None, None, None]
    assert mix_images(images, Mix(torch.full((8,), 0.75))).flatten()[:2].tolist() == [0.25, 0.75]


def test_class_weights_are_torchs_and_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    logits, labels, valid = problem("single")
    weights = torch.tensor([0.5, 2.0, 1.5])
    ours = loss_sum(logits, labels, valid, class_weights=weights) / total_weight(labels, valid, weights)
    torch.testing.assert_close(ours, F.cross_entropy(logits[valid], labels[valid], weight=weights))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0] * 5 + [1] * 2 + [2] * 3)
    assert balanced_weights([5, 2, 3]) == pytest.approx(expected)
    assert balanced_weights([4, 0]) == [1.0, 0.0]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_light_batch_is_divided_by_what_it_weighs(rows: int) -> None:
    logits, labels, weights = torch.randn(rows, 3), torch.zeros(rows, dtype=torch.int64), torch.tensor([0.15, 2.0, 1.5])
    valid = torch.ones(rows, dtype=torch.bool)
    weight = divisor(total_weight(labels, valid, weights).item())
    ours = loss_sum(logits, labels, valid, class_weights=weights) / weight
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weight=weights))
    assert divisor(total_weight(labels, ~valid, weights).item()) == 1.0


def test_what_does_not_count_is_stood_in_for_and_batchnorm_sees_no_empty_image() -> None:
    images, valid = torch.randn(6, 3, 4, 4), torch.tensor([True, False, True, True, False, True])
    images[~valid] = 0
    filled = stand_ins(images, valid)
    assert torch.equal(filled[valid], images[valid])
    assert torch.equal(filled[~valid], images[[0, 2]])
    assert stand_ins(images, torch.ones(6, dtype=torch.bool)) is images
    assert stand_ins(images, torch.zeros(6, dtype=torch.bool)) is images


def test_cutmix_exchanges_boxes_of_the_drawn_share() -> None:
    drawn = np.random.default_rng(0).random((4000, 3))
    boxes = draw_boxes(drawn[:, 0], drawn[:, 1:], (32, 48))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [32, 48]).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    wanted, found = 1 - drawn[:, 0], np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / (32 * 48)
    inside = (boxes > 0).all(1) & (boxes[:, 2] < 32) & (boxes[:, 3] < 48)
    assert np.abs(wanted - found)[inside].max() < 0.08 and (found <= wanted + 0.08).all()

    ids, valid = torch.arange(8), torch.tensor([1, 1, 1, 0, 1, 1, 1, 1]).bool()
    mix = draw_mix(Training(cutmix=1.0), 3, ids, valid, (32, 48))
    assert mix is not None and mix.boxes is not None and mix.own[2:4].tolist() == [1, 1]
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 32, 48)
    mixed = mix_images(images, mix)
    for i in range(8):
        partner = (mixed[i] == float(i ^ 1)).float().mean()
        assert partner.item() == pytest.approx(1 - mix.own[i].item(), abs=1e-6)
        assert set(mixed[i].unique().tolist()) <= {float(i), float(i ^ 1)}
    assert draw_mix(Training(), 3, ids, valid, (32, 48)) is None


def test_with_mixup_and_cutmix_a_pair_takes_one() -> None:
    mix = draw_mix(Training(cutmix=1.0, mixup=0.4), 0, torch.arange(400), torch.ones(400).bool(), (32, 32))
    assert mix is not None and mix.boxes is not None
    boxed = (mix.boxes[:, 2:] > mix.boxes[:, :2]).all(1)
    assert 0.3 < boxed.float().mean() < 0.7
    blended = mix_images(torch.arange(400.0)[:, None, None, None].expand(400, 1, 32, 32), mix)
    assert all(len(blended[i].unique()) == 1 for i in range(400) if not boxed[i])


def test_the_loss_of_views_is_the_mean_of_their_losses() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 4))
    views = [torch.randn(6, 3, side, side) for side in (8, 8, 5, 5, 5)]
    labels, valid = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([True] * 5 + [False])
    loss = views_loss(net, views, labels, valid, mixes=[None] * 5)
    each = [torch.nn.functional.cross_entropy(net(view)[:5], labels[:5], reduction="sum") for view in views]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    one = views_loss(net, views[:1], labels, valid, mixes=[None])
    torch.testing.assert_close(one, each[0])
