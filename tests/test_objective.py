"""The masked loss: any cut has the same sum and gradient. Run: pytest tests/test_objective.py"""

import pytest
import torch
from torch.nn import functional as F

from train.objective import Mix, counted, loss_sum, mix_images


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
