"""k-NN against scikit-learn's brute force in float64, and its edges."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from train import knn, neighbours
from train.knn import knn_probabilities

TEMPERATURE = 0.1


def oracle(bank, labels, queries, k):
    judge = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / TEMPERATURE)
    )
    return judge.fit(bank, labels).predict_proba(queries)


def features(n, d, seed):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize(
    ("n", "m", "d", "classes", "k"), [(500, 60, 32, 5, 200), (50, 1, 8, 2, 7), (40, 9, 3, 3, 40), (30, 4, 5, 2, 1)]
)
def test_agrees_with_scikit_learn(n, m, d, classes, k):
    bank, queries = features(n, d, 0), features(m, d, 1)
    labels = np.arange(n) % classes
    ours = knn_probabilities(bank, labels, queries, num_classes=classes, k=k)
    assert ours.dtype == np.float64 and ours.shape == (m, classes)
    np.testing.assert_allclose(ours, oracle(bank, labels, queries, k), atol=1e-9)


def test_agrees_with_scikit_learn_on_float32_features_and_ties():
    bank = np.repeat(features(30, 6, 2), 4, axis=0).astype(np.float32)  # every distance four times
    labels = np.repeat(np.arange(30) % 3, 4)
    queries = bank[::8]
    ours = knn_probabilities(bank, labels, queries, num_classes=3, k=20)
    np.testing.assert_allclose(ours, oracle(bank.astype(float), labels, queries.astype(float), 20), atol=1e-6)


def test_ties_at_the_last_place_go_to_the_lower_bank_row():
    bank = np.ones((6, 2))
    labels = np.array([1, 0, 0, 0, 0, 0])
    ours = knn_probabilities(bank, labels, np.ones((1, 2)), num_classes=2, k=2)
    np.testing.assert_allclose(ours, [[0.5, 0.5]])


def test_a_small_bank_lowers_k():
    bank, labels, queries = features(5, 4, 3), np.array([0, 1, 0, 1, 1]), features(3, 4, 4)
    np.testing.assert_array_equal(
        knn_probabilities(bank, labels, queries, num_classes=2, k=200),
        knn_probabilities(bank, labels, queries, num_classes=2, k=5),
    )


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_change_the_result(block):
    bank, labels, queries = features(90, 8, 5), np.arange(90) % 4, features(64, 8, 6)
    whole = knn_probabilities(bank, labels, queries, num_classes=4, k=11)
    np.testing.assert_allclose(
        knn_probabilities(bank, labels, queries, num_classes=4, k=11, block=block), whole, atol=1e-12
    )


@pytest.mark.parametrize("block", [3, 100])
def test_leave_one_out_equals_taking_each_row_out_by_hand(block):
    bank, labels = features(25, 6, 7), np.arange(25) % 3
    ours = knn_probabilities(bank, labels, bank, num_classes=3, k=6, exclude_self=True, block=block)
    for i in range(25):
        rest = np.arange(25) != i
        np.testing.assert_allclose(ours[i], oracle(bank[rest], labels[rest], bank[i : i + 1], 6)[0], atol=1e-9)


def test_leave_one_out_takes_every_other_sample_where_k_is_larger():
    bank = features(4, 3, 8)
    ours = knn_probabilities(bank, np.array([0, 1, 1, 1]), bank, num_classes=2, k=9, exclude_self=True)
    assert ours[0, 0] == 0 and ours[0, 1] == 1


def test_multi_label_is_each_label_on_its_own_and_skips_ignored_ones():
    bank, queries = features(80, 5, 9), features(12, 5, 10)
    labels = (features(80, 3, 11) > 0).astype(float)
    ours = knn_probabilities(bank, labels, queries, num_classes=3, k=80, multi_label=True)
    for c in range(3):
        np.testing.assert_allclose(ours[:, c], oracle(bank, labels[:, c].astype(int), queries, 80)[:, 1], atol=1e-9)
    labels[:40, 0], labels[:, 2] = np.nan, np.nan
    masked = knn_probabilities(bank, labels, queries, num_classes=3, k=80, multi_label=True)
    np.testing.assert_allclose(
        masked[:, 0], oracle(bank[40:], labels[40:, 0].astype(int), queries, 40)[:, 1], atol=1e-9
    )
    np.testing.assert_allclose(masked[:, 1], ours[:, 1])
    assert np.isnan(masked[:, 2]).all()


def test_low_temperature_does_not_overflow_and_tensors_are_taken():
    bank, labels = torch.tensor(features(20, 4, 12)), torch.arange(20) % 2
    ours = knn_probabilities(bank, labels, bank[:3], num_classes=2, k=20, temperature=1e-4)
    np.testing.assert_allclose(ours, np.eye(2)[[0, 1, 0]], atol=1e-9)


def test_no_queries_give_no_rows():
    assert knn_probabilities(np.ones((3, 2)), np.zeros(3, int), np.empty((0, 2)), num_classes=2).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": np.empty((0, 4)), "bank_labels": np.empty(0, int)}, "the bank holds 0 samples"),
        ({"queries": np.ones((2, 3))}, "4 wide, query features 3"),
        ({"bank_labels": np.full(6, 2)}, r"must be in 0\.\.1, got 2\.\.2"),
        ({"bank_labels": np.zeros(5, int)}, r"must have shape \(6,\)"),
        ({"k": 0}, "k must be at least 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"exclude_self": True}, "got 2 queries for 6 samples"),
        ({"queries": np.full((2, 4), np.nan)}, "NaN or infinite"),
        ({"queries": np.ones(4)}, r"must be \[samples, width\]"),
    ],
)
def test_bad_input_is_answered(change, message):
    good = {"bank": features(6, 4, 0), "bank_labels": np.arange(6) % 2, "queries": features(2, 4, 1)}
    with pytest.raises(ValueError, match=message):
        knn_probabilities(num_classes=2, **{**good, **change})


def test_a_zero_row_is_at_a_right_angle_to_everything():
    ours = knn_probabilities(
        np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), np.array([[0.0, 1.0]]), num_classes=2
    )
    np.testing.assert_allclose(ours, [[0.5, 0.5]])


@pytest.fixture(scope="module")
def large():
    """A bank that is worth candidates, in clusters, with rows that repeat."""
    generator = np.random.default_rng(11)
    centres = generator.normal(size=(9, 48))
    rows = centres[generator.integers(0, 9, 6100)] + 0.3 * generator.normal(size=(6100, 48))
    rows[3000:3040] = rows[17]
    return rows.astype(np.float32), generator.integers(0, 4, 6100)


def test_candidates_give_what_the_whole_product_gives(large, monkeypatch):
    bank, labels = large
    quick = knn_probabilities(bank, labels, bank[:300], num_classes=4, k=60)
    alone = np.setdiff1d(np.arange(6100), np.arange(3000, 3040))  # scikit-learn leaves ties at the k-th place to chance
    unique = knn_probabilities(bank[alone], labels[alone], bank[:300], num_classes=4, k=60)
    expected = oracle(np.float64(bank[alone]), labels[alone], np.float64(bank[:300]), 60)
    np.testing.assert_allclose(unique, expected, atol=1e-9)
    taken = []
    monkeypatch.setattr(knn, "worth_candidates", lambda bank, k: taken.append(k) or False)
    np.testing.assert_allclose(quick, knn_probabilities(bank, labels, bank[:300], num_classes=4, k=60), atol=1e-12)
    assert taken == [60]


def test_candidates_hold_the_nearest_also_where_float32_cannot_tell(monkeypatch):
    """Similarities that differ by 1e-9: float32 orders them at random, the margin keeps them all."""
    generator = np.random.default_rng(2)
    axis = np.zeros(16)
    axis[0] = 1
    away = generator.normal(size=(5000, 16))
    away[:, 0] = 0
    near = generator.permutation(64)
    angle = np.concatenate([1e-3 + near * 1e-6, np.full(4936, 0.5)])
    bank = np.cos(angle)[:, None] * axis + np.sin(angle)[:, None] * away / np.linalg.norm(away, axis=1, keepdims=True)
    unit = torch.from_numpy(bank / np.linalg.norm(bank, axis=1, keepdims=True))
    values, index = neighbours.Candidates(unit, 20, 64).nearest(torch.from_numpy(axis[None]), None)
    assert index[0].tolist() == np.argsort(near)[:20].tolist()
    np.testing.assert_allclose(values[0], np.cos(1e-3 + np.arange(20) * 1e-6), atol=1e-14)


def test_leave_one_out_with_candidates_leaves_the_own_row_out(large):
    bank, labels = large
    quick = knn_probabilities(bank, labels, bank, num_classes=4, k=1, exclude_self=True)
    unit = np.float64(bank) / np.linalg.norm(np.float64(bank), axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    expected = labels[similarity.argmax(1)]
    assert (quick.argmax(1) == expected).mean() > 0.98  # the repeated rows alone may choose another of their kind
    odd = np.flatnonzero(quick.argmax(1) != expected)
    assert set(odd) <= {17, *range(3000, 3040)}


def test_too_many_candidates_fall_back_to_the_whole_product(monkeypatch):
    bank = np.ones((5000, 8), np.float32)
    labels = np.arange(5000) % 2
    ours = knn_probabilities(bank, labels, bank[:3], num_classes=2, k=7)
    np.testing.assert_allclose(ours, [[4 / 7, 3 / 7]] * 3)  # ties go to the lower rows: 0, 1, 0, 1, 0, 1, 0


def test_one_query_with_too_many_candidates_falls_back_alone(large):
    """Beside others, which keep their candidates; in threads and blocks of any size, with the own row left out."""
    bank, labels = large
    bank = np.concatenate([np.tile(bank[17], (700, 1)), bank])
    labels = np.concatenate([np.arange(700) % 4, labels])
    unit = torch.from_numpy(np.float64(bank))
    unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    quick = neighbours.Candidates(unit, 60, 7)
    for own, first in ((None, 690), (690, 690)):
        values, index = quick.nearest(unit[first : first + 30], own)
        expected_values, expected_index = neighbours.nearest(unit[first : first + 30], unit, own, 60)
        np.testing.assert_allclose(values, expected_values, atol=1e-14)
        same = (index == expected_index).all(1)
        assert same[:10].all() and (index[:10, :] < 700).all()  # the lowest of 741 equal rows
        assert own is None or not (index == torch.arange(690, 720)[:, None]).any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_float_type_are_taken_as_they_are(kind):
    bank = torch.randn(5000, 24, generator=torch.Generator().manual_seed(3)).to(kind)
    labels = torch.arange(5000) % 3
    ours = knn_probabilities(bank, labels, bank[:20], num_classes=3, k=9)
    expected = knn_probabilities(bank.double().numpy(), labels, bank[:20].double().numpy(), num_classes=3, k=9)
    np.testing.assert_array_equal(ours, expected)


def test_the_callers_features_stay_as_they_are():
    bank = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    kept = bank.clone()
    knn_probabilities(bank, [0, 1, 0, 1], bank, num_classes=2, k=2)
    knn_probabilities(bank.numpy(), [0, 1, 0, 1], bank.numpy(), num_classes=2, k=2)
    assert torch.equal(bank, kept)
