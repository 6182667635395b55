"""Intrinsic dimension of manifolds whose dimension is known."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from analysis.twonn import dimension, nearest_two, two_nn


def embedded(points: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Points in a larger space, turned."""
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return np.pad(points, ((0, 0), (0, width - points.shape[1]))) @ turn


@pytest.mark.parametrize("d", [1, 2, 5, 10])
def test_cubes(d: int):
    rng = np.random.default_rng(d)
    found = dimension(embedded(rng.random((3000, d)), 50, rng))
    assert found.value == pytest.approx(d, rel=0.12)
    assert found.half == pytest.approx(d, rel=0.15)
    assert found.points == 3000


def test_a_swiss_roll_is_a_plane_and_a_sphere_has_one_dimension_less():
    rng = np.random.default_rng(0)
    turn, height = 1.5 * np.pi * (1 + 2 * rng.random(3000)), 20 * rng.random(3000)
    assert two_nn(np.stack([turn * np.cos(turn), height, turn * np.sin(turn)], 1)) == pytest.approx(2, rel=0.1)
    ball = rng.normal(size=(3000, 4))
    assert two_nn(ball / np.linalg.norm(ball, axis=1, keepdims=True)) == pytest.approx(3, rel=0.1)


def test_values_of_scikit_dimension():
    """From skdim.id.TwoNN().fit(points) of scikit-dimension 0.5.0 on these very points."""
    rng = np.random.default_rng(0)
    for d, expected in ((2, 1.9286270215210328), (5, 4.9871487049796), (10, 8.091233779884732)):
        assert two_nn(rng.random((1000, d))) == pytest.approx(expected, rel=1e-12)


def test_neighbours_are_scikit_learns_also_far_from_the_origin():
    rng = np.random.default_rng(1)
    points = rng.random((1500, 30)) * 1e-3 + 1e3
    expected = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(points - 1e3).kneighbors()[0][:, :2]
    np.testing.assert_allclose(np.stack(nearest_two(points), 1), expected, rtol=1e-6)


def test_repeats_are_counted_and_scale_and_order_change_nothing():
    rng = np.random.default_rng(2)
    points = rng.random((300, 3))
    found = dimension(np.concatenate([points, points[:50]]))
    assert (found.points, found.repeated) == (300, 50)
    assert found.value == pytest.approx(two_nn(rng.permutation(points) * 1e6))


def test_too_few_points_are_no_number_and_the_reason_is_told():
    points = np.random.default_rng(0).random((90, 3))
    found = {n: dimension(points[:n]) for n in (19, 30, 50, 90)}
    assert [np.isnan(each.value) for each in found.values()] == [True, False, False, False]
    assert [each.reason for each in found.values()] == [
        "19 different points are too few, TwoNN wants 20",
        "halves and quarters of 30 different points are too small, TwoNN wants 20",
        "quarters of 50 different points are too small, TwoNN wants 20",
        "",
    ]
    steps = dimension(np.arange(100.0)[:, None] ** 0 * np.eye(100))
    assert np.isnan(steps.value) and steps.reason == "the two nearest of every point are equally far"
    with pytest.raises(ValueError, match="wants finite points"):
        dimension(np.full((30, 2), np.nan))


def test_ties_in_a_part_alone_are_told():
    quarter = np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(100)[:25])
    step = np.searchsorted(quarter, np.arange(100), side="right") - 1  # a quarter lies in even steps, the rest between
    line = 100 * (step + np.random.default_rng(0).random(100))
    line[quarter] = 100 * np.arange(25)
    found = dimension(np.sort(line)[:, None])
    assert np.isfinite([found.value, found.half]).all() and np.isnan(found.quarter)
    assert found.reason == "in a part the two nearest of every point are equally far"
