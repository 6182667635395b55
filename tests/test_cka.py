"""CKA: reference numbers, invariances, and that every way of computing one number gives that number."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from analysis.opinions import cca, ceiling, image_halves, null_level, procrustes
from analysis.similarity import (
    batch_hsics,
    batches_of,
    cka_of_hsic,
    hsic_in_features,
    hsic_in_tiles,
    hsic_of_grams,
    hsic_of_layers,
    jackknife_error,
    keyed_order,
    linear_gram,
)


@pytest.fixture(scope="module")
def reference() -> tuple[np.ndarray, np.ndarray]:
    state = np.random.RandomState(1337)
    first = state.randn(100, 10)
    return first, state.randn(100, 10) + first


@pytest.fixture(scope="module")
def layers() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    first = generator.normal(size=(150, 12)).astype(np.float32) + 3
    return [first, first @ generator.normal(size=(12, 30)).astype(np.float32), generator.normal(size=(150, 7)) - 8]


def cka(grams: list[np.ndarray], *, biased: bool) -> float:
    return float(cka_of_hsic(hsic_of_grams(np.stack(grams), biased=biased))[0, 1])


def song_hsic(k: np.ndarray, other: np.ndarray) -> float:
    """Equation 5 of Song et al. (2012), written out."""
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    middle = k.sum() * other.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ other).sum()
    return float((np.trace(k @ other) + middle) / (n * (n - 3)))


def rbf_gram(features: np.ndarray, sigma: float) -> np.ndarray:
    """The Gaussian kernel [n, n]; `sigma` is a fraction of the median distance (Kornblith et al., 2019)."""
    distances = np.square(features[:, None] - features[None]).sum(2)
    return np.exp(-distances / (2 * sigma**2 * np.median(distances)))


def test_reference_numbers_of_kornblith(reference):
    grams = [linear_gram(side) for side in reference]
    assert cka(grams, biased=True) == pytest.approx(0.55761, abs=5e-6)
    assert cka(grams, biased=False) == pytest.approx(0.51346, abs=5e-6)
    assert cka([rbf_gram(side, 0.5) for side in reference], biased=True) == pytest.approx(0.65483, abs=5e-6)
    assert cca(*reference, centre=False)["cca_r2"] == pytest.approx(0.54312, abs=5e-6)


def test_hsic_is_equation_5_of_song(reference):
    grams = [side @ side.T for side in reference]
    hsic = hsic_of_grams(np.stack(grams))
    assert hsic[0, 1] == pytest.approx(song_hsic(*grams), rel=1e-10)
    assert hsic[0, 0] == pytest.approx(song_hsic(grams[0], grams[0]), rel=1e-10)


def test_grams_tiles_and_feature_space_agree(layers):
    whole = hsic_of_grams(np.stack([linear_gram(layer) for layer in layers]))
    for width in (1, 20, 45, 1000):  # features of 12, 30 and 7: layers alone, by twos, and all together
        found = hsic_in_features(layers, rows=64, width=width)
        np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(hsic_in_tiles(layers, tile_bytes=8 * 150 * 3 * 37), whole, rtol=1e-9, atol=1e-9)


def test_cheaper_way_is_taken(layers):
    generator = np.random.default_rng(0)
    assert hsic_of_layers([generator.normal(size=(300, 4)), generator.normal(size=(300, 5))])[1] == "features"
    assert hsic_of_layers([generator.normal(size=(30, 400)), generator.normal(size=(30, 500))])[1] == "grams"


def test_orthogonal_maps_scalings_and_shifts_leave_cka_at_one(layers):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    moved = [layers[0], layers[0] @ rotation, 17.5 * layers[0], layers[0] + 40]
    np.testing.assert_allclose(cka_of_hsic(hsic_in_features(moved)), 1, atol=1e-5)
    assert procrustes(layers[0], layers[0] @ rotation * 3) == pytest.approx(1, abs=1e-5)
    assert cca(layers[0], layers[0] @ np.diag(np.arange(1, 13)))["cca_r2"] == pytest.approx(1, abs=1e-5)


def test_mean_cca_is_that_of_scikit_learn(reference):
    first, second = reference
    scores = CCA(n_components=10, scale=False, max_iter=5000, tol=1e-12).fit_transform(first, second)
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(scores[0].T, scores[1].T, strict=True)])
    assert cca(first, second)["cca_mean"] == pytest.approx(expected, abs=1e-4)


def test_unrelated_features_are_near_zero_only_without_the_bias():
    generator = np.random.default_rng(3)
    pair = [linear_gram(generator.normal(size=(549, 384))) for _ in range(2)]
    assert abs(cka(pair, biased=False)) < 0.02
    assert cka(pair, biased=True) > 0.4


def test_shuffled_pairing_is_near_zero_and_its_spread_is_known(reference):
    level = null_level(*reference, shuffles=200)
    n = 100
    assert abs(level["mean"]) < 0.01
    assert level["std"] == pytest.approx(np.sqrt(2 / (n * (n - 1))), rel=0.25)  # exact to first order: rows sum to zero
    assert level["largest"] < 0.1


def test_order_of_images_changes_nothing(layers):
    ids = np.random.default_rng(2).integers(0, 2**63, 150)
    shuffle = np.random.default_rng(4).permutation(150)
    moved = [np.ascontiguousarray(layer[shuffle]) for layer in layers]
    plain = batch_hsics(layers, ids, batch=16, seed=9).mean(0)
    np.testing.assert_array_equal(batch_hsics(moved, ids[shuffle], batch=16, seed=9).mean(0), plain)
    whole = [cka_of_hsic(hsic_in_features(side)) for side in (layers, moved)]
    np.testing.assert_allclose(whole[0], whole[1], atol=1e-9)
    assert not np.array_equal(keyed_order(ids, 0), keyed_order(ids, 1))


def test_minibatch_sums_before_it_divides():
    """Class-sorted data: averaged ratios of its batches miss what the whole set shows, summed keyed batches do not."""
    generator = np.random.default_rng(8)
    labels = np.repeat(np.arange(8), 64)
    centres = generator.normal(size=(8, 20)) * 6
    layers = [centres[labels] + generator.normal(size=(512, 20)) for _ in range(2)]
    whole = cka_of_hsic(hsic_in_features(layers))[0, 1]
    batched = cka_of_hsic(batch_hsics(layers, np.arange(512), batch=64).mean(0))[0, 1]
    sorted_batches = [
        cka([linear_gram(layer[i : i + 64]) for layer in layers], biased=False) for i in range(0, 512, 64)
    ]
    assert whole > 0.9
    assert batched == pytest.approx(whole, abs=0.01)
    assert np.mean(sorted_batches) < 0.3


def test_batches_have_no_short_tail():
    sizes = [len(part) for part in batches_of(np.arange(130), batch=64, seed=0)]
    assert sizes == [44, 43, 43]
    assert [len(part) for part in batches_of(np.arange(10), batch=64, seed=0)] == [10]
    assert [len(part) for part in batches_of(np.arange(5), batch=4, seed=0)] == [5]
    with pytest.raises(ValueError, match="batch of 3 is too small for unbiased CKA: --minibatch 4"):
        batches_of(np.arange(10), batch=3, seed=0)
    with pytest.raises(ValueError, match=r"at least 4 images, got 2: raise --limit"):
        batches_of(np.arange(2), batch=8, seed=0)


def test_ill_posed_input_is_named_or_nan(layers):
    assert np.isnan(cka_of_hsic(hsic_of_grams(np.stack([np.zeros((8, 8)), linear_gram(layers[0][:8])])))[0]).all()
    with pytest.raises(ValueError, match="same images"):
        hsic_in_features([layers[0], layers[1][:20]])
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        hsic_of_grams(np.zeros((2, 3, 3)))
    assert np.isnan(cca(layers[0][:10], layers[1][:10])["cca_r2"])


def test_correlations_that_are_one_for_want_of_images_are_undefined(monkeypatch):
    """Subspaces of d1 and d2 directions among n - 1 share d1 + d2 - (n - 1) at least."""
    generator = np.random.default_rng(9)
    first, second = generator.normal(size=(30, 12)), generator.normal(size=(30, 18))
    forced = np.linalg.svd(
        np.linalg.qr(first - first.mean(0))[0].T @ np.linalg.qr(second - second.mean(0))[0], compute_uv=False
    )
    assert forced[0] == pytest.approx(1)  # unrelated, and yet
    for whole in (1000, 20):
        monkeypatch.setattr("analysis.opinions.WHOLE_IMAGES", whole)
        assert np.isnan(cca(first, second)["cca_mean"]) and np.isfinite(cca(first, second[:, :17])["cca_mean"])
        assert np.isfinite(cca(first, second, centre=False)["cca_mean"])


def test_more_features_than_images_have_correlations_where_they_have_few_directions(monkeypatch):
    generator = np.random.default_rng(10)
    few, other = generator.normal(size=(40, 6)), generator.normal(size=(40, 9))
    wide = few @ generator.normal(size=(6, 70))
    expected = cca(few, other)["cca_mean"]
    for whole in (1000, 20):
        monkeypatch.setattr("analysis.opinions.WHOLE_IMAGES", whole)
        assert cca(wide, other)["cca_mean"] == pytest.approx(expected, abs=1e-6)
        assert np.isnan(cca(generator.normal(size=(40, 70)), other)["cca_mean"])


def test_procrustes_with_more_features_than_images():
    generator = np.random.default_rng(6)
    wide, narrow = generator.normal(size=(20, 50)), generator.normal(size=(20, 6))
    centred = [side - side.mean(0) for side in (wide, narrow)]
    nuclear = np.linalg.svd(centred[0].T @ centred[1], compute_uv=False).sum()
    expected = nuclear / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1])
    assert procrustes(wide, narrow) == pytest.approx(expected, rel=1e-9)


def test_ceiling_and_halves_frame_a_value(layers):
    generator = np.random.default_rng(7)
    signal = generator.normal(size=(400, 5)) @ generator.normal(size=(5, 60))
    noisy = signal + 0.1 * generator.normal(size=signal.shape)
    assert ceiling(noisy) > 0.75
    assert ceiling(generator.normal(size=(400, 60))) < 0.1
    assert np.isnan(ceiling(noisy[:, :1]))
    first, second = image_halves(signal, noisy)
    assert first == pytest.approx(second, abs=0.02)


def test_second_opinions_in_parts_are_those_of_the_whole(layers, monkeypatch):
    expected = [(cca(layers[0], other)["cca_r2"], procrustes(layers[0], other)) for other in layers[1:]]
    monkeypatch.setattr("analysis.opinions.WHOLE_IMAGES", 100)
    found = [(cca(layers[0], other)["cca_r2"], procrustes(layers[0], other)) for other in layers[1:]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_that_do_not_vary_have_no_correlation(layers, monkeypatch):
    for whole in (1000, 100):
        monkeypatch.setattr("analysis.opinions.WHOLE_IMAGES", whole)
        assert np.isnan(cca(np.ones((150, 4)), layers[0])["cca_r2"])
        assert np.isnan(procrustes(np.ones((150, 4)), layers[0]))
        wider = np.concatenate([layers[0], layers[0][:, :5] * 2], 1)  # the same 12 directions
        assert cca(wider, layers[0])["cca_r2"] == pytest.approx(1, abs=1e-6)


def test_null_level_of_many_images_says_how_many_it_drew(monkeypatch):
    monkeypatch.setattr("analysis.opinions.GRAM_IMAGES", 60)
    generator = np.random.default_rng(2)
    level = null_level(generator.normal(size=(300, 5)), generator.normal(size=(300, 6)))
    assert level["images"] == 60
    assert level["std"] == pytest.approx(np.sqrt(2) / 60, rel=0.5)


@pytest.mark.parametrize("batch", [16, 32, 128])
def test_batch_size_moves_minibatch_cka_within_the_stated_error(batch):
    generator = np.random.default_rng(12)
    first = generator.normal(size=(1024, 12))
    layers = [first, first @ generator.normal(size=(12, 20)) + 2 * generator.normal(size=(1024, 20))]
    whole = cka_of_hsic(hsic_in_features(layers))[0, 1]
    hsics = batch_hsics(layers, np.arange(1024), batch=batch)
    error = jackknife_error(hsics)[0, 1]
    assert cka_of_hsic(hsics.mean(0))[0, 1] == pytest.approx(whole, abs=3 * error)
    assert error < 0.02
