"""Unpooled activations: Grams by BLAS, mini-batches and tiles, each held against plain float64 over all of them."""

import platform
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import arguments, make_run
from threadpoolctl import threadpool_info

from analysis import cka
from analysis.grams import CHUNK, FLAGS, compiled_loops, grams, in_memory_order
from analysis.results import read_result
from analysis.session import Session
from analysis.similarity import cka_of_hsic, hsic_of_grams, jackknife_error, linear_gram, u_centre
from analysis.tokens import Reordered, token_hsic, whole_token_hsic
from shards.shardset import Split
from train.hooks import tapped


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_set, "test_efficientnet", 32)


@pytest.fixture
def session(run: Path) -> Session:
    return Session(asked(run))


def asked(run: Path, *flags: str) -> Namespace:
    return arguments(run, "--layers", "stem,blocks.1.0,classifier", "--batch", "4", *flags, script="cka")


def everything(session: Session, state: str) -> list[np.ndarray]:
    """All activations of all layers at once, as the tiles avoid."""
    model, parts = session.holding(state), []
    taps = session.taps_of(model)
    with tapped(taps) as outputs, torch.inference_mode():
        for images, _, _, valid, *_ in session.loader(session.split()):
            model(images)
            parts.append([outputs[name][valid].flatten(1).double().numpy() for name in taps])
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


@pytest.fixture(params=["compiled", "BLAS"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to a Gram matrix."""
    assert compiled_loops(4) is not None, "these tests want a C compiler (cc), as DeepSpeed does"
    if request.param == "BLAS":
        monkeypatch.setattr("analysis.grams.MOST_IMAGES", 0)


@pytest.mark.parametrize(
    ("images", "shape"), [(12, (3, 5, 4)), (9, (CHUNK + 77,)), (5, (1,)), (64, (2048 * 2 + 31,)), (257, (700,))]
)
@pytest.mark.parametrize("mean", [0, 2, 300])
def test_grams_are_those_of_float64_whatever_the_mean(way, images, shape, mean):
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(images, *shape, generator=generator) + mean for _ in range(3)]
    exact = np.stack([linear_gram(layer.double().numpy()) for layer in layers])
    length = exact.trace(axis1=1, axis2=2).max() / images  # squared, of an image from the mean
    np.testing.assert_allclose(u_centre(grams(layers)) / length, u_centre(exact) / length, rtol=0, atol=3e-6)


def test_grams_take_activations_as_they_lie_in_memory(way):
    maps = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    views = [maps.flatten(2).mT, maps.permute(0, 2, 3, 1), maps[:, 0], maps[:, ::2], maps.permute(3, 0, 1, 2)]
    views += [maps[..., ::2], maps[:, :1].expand(6, 5, 4, 4), maps[1:]]
    for view in views:
        rows = view.numpy().reshape(len(view), -1).astype(np.float64)
        np.testing.assert_allclose(u_centre(grams([view])[0]), u_centre(rows @ rows.T), atol=1e-4)
    for view in views[:2]:  # of a patch embedding, and of maps of which channels come last
        assert in_memory_order(view).data_ptr() == maps.data_ptr()


def test_grams_take_half_precision_and_leave_blas_its_threads(way):
    before = [library["num_threads"] for library in threadpool_info()]
    layers = [torch.randn(6, 40).bfloat16(), torch.randn(6, 3, 2)]
    found = grams(layers)
    np.testing.assert_allclose(u_centre(found[0]), u_centre(linear_gram(layers[0].double().numpy())), atol=1e-4)
    assert [library["num_threads"] for library in threadpool_info()] == before


@pytest.mark.parametrize("processor", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize(("images", "features"), [(4, 5), (7, 16), (63, 2100), (130, 3000)])
def test_compiled_grams_on_every_kind_of_processor(processor, images, features):
    if processor != "native" and platform.machine() != "x86_64":
        pytest.skip("of x86-64 alone")
    loops = compiled_loops(images, (*FLAGS, f"-march={processor}"))
    assert loops is not None
    rows = np.random.default_rng(images).normal(size=(images, features + 3)).astype(np.float32)[:, 3:]
    exact = (rows - rows[0]).astype(np.float64) @ (rows - rows[0]).astype(np.float64).T
    np.testing.assert_allclose(loops(rows), exact, atol=1e-6 * np.trace(exact) / images)


@pytest.mark.parametrize("batches", [1, 2, 100])
def test_tiles_give_the_whole_split(session, batches):
    layers = [layer for state in ("start", "end") for layer in everything(session, state)]
    expected = hsic_of_grams(np.stack([linear_gram(layer) for layer in layers]))
    a_batch = 4 * sum(layer.shape[1] for layer in layers) * 4
    found = whole_token_hsic([(session, "start"), (session, "end")], (batches + 2) * a_batch)
    np.testing.assert_allclose(cka_of_hsic(found.batches[0]), cka_of_hsic(expected), atol=1e-6)
    assert found.images == 19
    blocks = -(-5 // batches)  # of `batches` batches each, five in all
    assert found.passes == pytest.approx(sum(19 - 4 * batches * i for i in range(blocks)) / 19)


def test_order_of_the_split_changes_tiles_by_rounding_and_minibatches_not_at_all(session, monkeypatch):
    states = [(session, "start"), (session, "end")]
    whole, batched = whole_token_hsic(states, 1e6).batches[0], token_hsic(states, 6, 3).batches
    split = session.split()
    for order in (np.argsort(split.labels(), kind="stable"), np.random.default_rng(0).permutation(19)):
        monkeypatch.setattr(session, "split", lambda name=None, order=order: Reordered(split, order))
        moved = whole_token_hsic(states, 1e6).batches[0]
        np.testing.assert_allclose(cka_of_hsic(moved), cka_of_hsic(whole), atol=1e-6)
        np.testing.assert_array_equal(token_hsic(states, 6, 3).batches, batched)


def test_memory_that_holds_no_batch_is_refused(session):
    with pytest.raises(ValueError, match=r"--memory 1e-05 GB holds no batch: 4 images are .* give --memory .* or more"):
        whole_token_hsic([(session, "end")], 1e4)


def test_damaged_images_leave_no_row(session, monkeypatch):
    load = session.loader

    def masked(split: Split, consumed: int = 0) -> list:
        batches = [batch._replace(valid=batch.valid & (batch.sample_ids != bad)) for batch in load(split, consumed)]
        return batches

    bad = int(session.split().sample_ids()[6].astype(np.int64))
    layers = [np.delete(layer, 6, 0) for layer in everything(session, "end")]
    monkeypatch.setattr(session, "loader", masked)
    found = whole_token_hsic([(session, "end")], 1e6)
    expected = hsic_of_grams(np.stack([linear_gram(layer) for layer in layers]))
    assert found.images == 18
    np.testing.assert_allclose(cka_of_hsic(found.batches[0]), cka_of_hsic(expected), atol=1e-6)
    assert token_hsic([(session, "end")], 6, 0).images == 18


def test_models_of_other_sizes_meet_on_the_same_images(run, tiny_set, tmp_path):
    """Each model sees the images as its own training did; hooks are gone afterwards."""
    other = make_run(tmp_path / "vit", tiny_set, "test_vit", 48)
    flags = ("--against", str(other), "--features", "tokens", "--whole", "--batch", "4", "--minibatch", "6")
    cka.main(arguments(run, *flags, "--out", str(tmp_path / "out"), script="cka"))
    found = read_result(tmp_path / "out" / "cka-vit-tokens.json")
    sides = found["sides"]
    for kind in ("whole", "minibatch"):
        matrix = np.array(found[kind]["end of tiny-end of vit"])
        assert matrix.shape == (len(sides["end of tiny"]), len(sides["end of vit"]))
        np.testing.assert_allclose(np.diagonal(np.array(found[kind]["end of vit-end of vit"])), 1, atol=1e-6)


def test_hooks_are_gone_after_tokens(session, monkeypatch):
    built: list[torch.nn.Module] = []
    build: Callable = type(session.run).build_model
    monkeypatch.setattr(type(session.run), "build_model", lambda run: built.append(build(run)) or built[-1])
    token_hsic([(session, "end")], 6, 0)
    whole_token_hsic([(session, "end")], 1e6)
    assert len(built) >= 2
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for model in built
        for part in model.children()
        for module in part.modules()
    )


def test_jackknife_error_is_the_spread_over_draws():
    generator = np.random.default_rng(1)
    base = generator.normal(size=(3000, 5))

    def draw() -> np.ndarray:
        rows = base[generator.permutation(3000)[:320]]
        noisy = rows + generator.normal(size=rows.shape)
        parts = [slice(i, i + 32) for i in range(0, 320, 32)]
        return np.stack([hsic_of_grams(np.stack([linear_gram(side[p]) for side in (rows, noisy)])) for p in parts])

    draws = [draw() for _ in range(60)]
    spread = np.std([cka_of_hsic(each.mean(0))[0, 1] for each in draws])
    stated = np.mean([jackknife_error(each)[0, 1] for each in draws])
    assert stated == pytest.approx(spread, rel=0.35)
    assert np.isnan(jackknife_error(draws[0][:1])).all()


def test_the_study_averages_ratios_of_batches_as_stored(run, monkeypatch):
    monkeypatch.setattr(cka, "STUDY_BATCH", 6)
    cka.main(arguments(run, "--study-exact", "--layers", "conv_stem,blocks.1.0", script="cka"))
    found = read_result(run / "analysis" / "fine-some-layers" / "cka-study.json")
    session = Session(arguments(run, "--taps", "fine", "--layers", "conv_stem,blocks.1.0", script="cka"))
    layers = [layer for state in ("start", "end") for layer in everything(session, state)]
    parts = [slice(start, min(start + 6, 19)) for start in (0, 6, 12)]  # the last image alone has no unbiased HSIC
    expected = np.mean([published(layers, part) for part in parts], 0)
    np.testing.assert_allclose(np.array(found["minibatch"]["end-start"]), expected[2:, :2], atol=1e-5)
    assert "as the published study's code has it" in found["about"]


def published(layers: list[np.ndarray], part: slice) -> np.ndarray:
    """Song's debiased estimate of a batch as Kornblith et al. publish it: centre K and L, then correlate."""

    def centred(layer: np.ndarray) -> np.ndarray:
        gram = layer[part] @ layer[part].T
        n = len(gram)
        np.fill_diagonal(gram, 0)
        means = gram.sum(0) / (n - 2)
        means -= means.sum() / (2 * (n - 1))
        gram -= means[:, None] + means[None, :]
        np.fill_diagonal(gram, 0)
        return gram.ravel() / np.linalg.norm(gram)

    rows = np.stack([centred(layer) for layer in layers])
    return rows @ rows.T
