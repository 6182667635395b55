"""Raw folders and sets at URLs: the bytes of a local run, nothing private there. pytest tests/test_stores.py"""

import functools
import http.server
import importlib
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversions import DDSM, OPTIONS, digests, make
from faulty_server import Fault, serve
from shard_facts import shared_groups

import prep.convert
import prep.places
import prep.tasks
from prep.convert import convert
from prep.make_shards import main, parse_args
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.places import StoreFailed, open_place, patiently
from prep.sources import DATASETS
from shards.manifest import Manifest
from shards.shardset import ShardSet


def forget_stores() -> None:
    """fsspec keeps a file system by its arguments: that of another test would ask a server that is gone."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of a real S3 server on loopback, with the buckets raw and sets."""
    moto = importlib.import_module("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        forget_stores()
        store = moto.ThreadedMotoServer(port=0, verbose=False)
        store.start()
        host, port = store.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        client = boto3.client("s3")
        for bucket in ("raw", "sets"):
            client.create_bucket(Bucket=bucket)
        yield client
        client.close()
        store.stop()
        forget_stores()


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket="sets", Prefix=f"{prefix}/").get("Contents", [])
    return {
        row["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket="sets", Key=row["Key"])["Body"].read()
        for row in listed
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def upload(client: Any, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "raw", f"{prefix}/{path.relative_to(folder)}")


def test_from_a_bucket_into_a_bucket(
    s3: Any, raw_ddsm: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line, raw folder and set in S3, two worker processes: a local run's bytes; folds come along."""
    make(raw_ddsm, in_folder / "local")
    upload(s3, raw_ddsm, "DDSM")
    command = ["--dataset", "DDSM", "--raw", "s3://raw/DDSM", "--out", "s3://sets/deep/DDSM", "--short-side", "48"]
    command += ["--shard-samples", "8", "--workers", "2", "--salt", str(raw_ddsm / SALT_NAME)]
    main(parse_args([*command, "--dry-run"]))
    assert "s3://raw/DDSM -> s3://sets/deep/DDSM" in capsys.readouterr().out and objects(s3, "deep/DDSM") == {}
    main(parse_args([*command, "--folds", "3"]))
    said = capsys.readouterr().out
    assert "stay on this machine: data/shards/DDSM.private" in said
    there = objects(s3, "deep/DDSM")
    folds = {name: data for name, data in there.items() if name.startswith("splits/")}
    assert {name: data for name, data in there.items() if name not in folds} == contents(in_folder / "local")
    assert sorted(folds) == [*(f"splits/fold-{i}-of-3-seed-0.csv" for i in range(3)), "splits/proof.json"]
    private = {path.name for path in (in_folder / "data/shards/DDSM.private").iterdir()}
    assert private == {"lock", "salt", "sources.csv", "left_out.csv"}
    assert not (in_folder / "data/shards/DDSM").exists()
    main(parse_args(command))
    assert "already done, nothing to do" in capsys.readouterr().out
    fold = ShardSet("s3://sets/deep/DDSM", cache=in_folder / "cache", split_file="fold-1-of-3-seed-0")
    assert shared_groups(fold) == {"train-val": 0, "train-test": 0, "val-test": 0}


def test_an_interrupted_delivery_goes_on(
    s3: Any, raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(raw_ddsm, tmp_path / "local")
    options, calls = replace(OPTIONS, url="s3://sets/cut"), []
    real = prep.tasks.deliver

    def failing(folder: Path, names: list[str], url: str) -> None:
        calls.append(names[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(folder, names, url)

    monkeypatch.setattr(prep.tasks, "deliver", failing)
    with pytest.raises(KeyboardInterrupt):
        make(raw_ddsm, tmp_path / "cut", options)
    assert len(objects(s3, "cut")) == 6 and "manifest.json" not in objects(s3, "cut")
    s3.put_object(Bucket="sets", Key="cut/train-000777.tar", Body=b"of other options")
    made = len(calls)
    make(raw_ddsm, tmp_path / "cut", options)
    assert len(calls) - made == len(list((tmp_path / "local").glob("*.tar"))) - 2  # the two there are kept
    assert objects(s3, "cut") == contents(tmp_path / "local")


def test_what_is_not_ours_and_another_set_are_refused(s3: Any, raw_ddsm: Path, tmp_path: Path) -> None:
    s3.put_object(Bucket="sets", Key="theirs/report.pdf", Body=b"of somebody")
    with pytest.raises(ValueError, match=r"s3://sets/theirs holds files that are not a shard set's \(1 of them"):
        make(raw_ddsm, tmp_path / "a", replace(OPTIONS, url="s3://sets/theirs"))
    make(raw_ddsm, tmp_path / "b", replace(OPTIONS, url="s3://sets/b"))
    with pytest.raises(ValueError, match=r"s3://sets/b already holds another finished set"):
        make(raw_ddsm, tmp_path / "c", replace(OPTIONS, url="s3://sets/b", seed=3))
    s3.delete_object(Bucket="sets", Key="b/train-000000.tar")
    with pytest.raises(ValueError, match=r"train-000000\.tar in s3://sets/b is not what the manifest says"):
        make(raw_ddsm, tmp_path / "b", replace(OPTIONS, url="s3://sets/b"))


def test_hdf5_from_a_bucket(s3: Any, tmp_path: Path) -> None:
    draw_phantoms("Camelyon", tmp_path / "raw", 30, quiet=True)
    upload(s3, tmp_path / "raw", "Camelyon")
    dataset = DATASETS["Camelyon"]
    options = replace(OPTIONS, pixels=replace(OPTIONS.pixels, channels=3, short_side=None))
    salt = tmp_path / "salt"
    salt.write_bytes(bytes(range(32)))
    for name, root in (("a", tmp_path / "raw"), ("b", open_place("s3://raw/Camelyon"))):
        convert(dataset, root, tmp_path / name, options, salt)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def list_directory(self, path: Any) -> None:  # as many web servers do
        self.send_error(404)


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_raw_images_from_a_web_server_without_listings(raw_ddsm: Path, tmp_path: Path) -> None:
    shutil.copytree(raw_ddsm, tmp_path / "raw")
    (victim,) = list((tmp_path / "raw" / "ddsm_raw").iterdir())[:1]
    victim.unlink()
    options = replace(OPTIONS, max_bad=0.1)
    local = convert(DDSM, tmp_path / "raw", tmp_path / "local", options, raw_ddsm / SALT_NAME)[0]
    with web_server(tmp_path / "raw") as url:
        far = convert(DDSM, open_place(url), tmp_path / "far", options, raw_ddsm / SALT_NAME)[0]
        with pytest.raises(ValueError, match=rf"APTOS2019: {url} lacks train\.csv\. Get the dataset from"):
            convert(DATASETS["APTOS2019"], open_place(url), tmp_path / "none", options)
    assert [left.reason for left in far.left_out] == ["the file is missing"]
    assert far == local and digests(tmp_path / "far") == digests(tmp_path / "local")


def test_a_store_that_fails_ends_the_run_and_no_image_is_left_out(
    raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prep.places, "FIRST_WAIT_SECONDS", 0.001)
    with web_server(raw_ddsm) as url:
        plan = make_plan_of(raw_ddsm, open_place(url))
        monkeypatch.setattr(prep.convert, "make_plan", lambda *_: plan)
        monkeypatch.setattr(Quiet, "do_GET", lambda self: self.send_error(503))
        with pytest.raises(ValueError, match=r"a raw file: .*503.*gave up after 5 tries.*finished shards are kept"):
            convert(DDSM, open_place(url), tmp_path / "set", replace(OPTIONS, max_bad=1.0), raw_ddsm / SALT_NAME)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_busy_server_lacks_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table is asked for again, and a server that stays busy is told as that, not as a table that is missing."""
    monkeypatch.setattr(prep.places, "FIRST_WAIT_SECONDS", 0.001)
    draw_phantoms("CheXpert", tmp_path / "raw", 20, size=64, quiet=True)
    local = [record.source for record in DATASETS["CheXpert"].read(tmp_path / "raw")]
    with serve(tmp_path / "raw") as server:
        for times, name in ((2, "train.csv"), (4, "valid.csv")):
            server.faults[name] = [Fault("status", times=times)]
        assert [record.source for record in DATASETS["CheXpert"].read(open_place(server.url))] == local
        for name in ("train.csv", "valid.csv"):
            server.faults[name] = [Fault("status", times=10_000)]
            with pytest.raises(StoreFailed, match=rf"{name}: ClientResponseError: 503; gave up after 5 tries"):
                list(DATASETS["CheXpert"].read(open_place(server.url)))
            server.faults.clear()


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"Camelyon-slides", "slides"}))
def test_every_reader_reads_the_same_at_a_url(name: str, tmp_path: Path) -> None:
    import fsspec

    draw_phantoms(DATASETS[name].phantoms, tmp_path, 20, size=64, quiet=True)
    store, place = fsspec.filesystem("memory"), f"/raw-{name}"
    store.put(str(tmp_path), place, recursive=True)
    try:
        near, far = (list(DATASETS[name].read(root)) for root in (tmp_path, open_place(f"memory:/{place}")))
    finally:
        store.rm(place, recursive=True)
    assert near and all(record.path.is_file() for record in near)
    assert [replace(a, path=b.path) for a, b in zip(near, far, strict=True)] == far
    assert [a.path.relative_to(tmp_path).as_posix() for a in near] == [b.path.path[len(place) + 1 :] for b in far]  # type: ignore[attr-defined]


def make_plan_of(raw: Path, root: Path) -> Any:
    """The plan of the local folder with the paths of the far one."""
    from prep.planning import make_plan

    plan = make_plan(DDSM, raw, OPTIONS, (raw / SALT_NAME).read_bytes())
    parts = {
        split: [(key, replace(record, path=root / str(record.path.relative_to(raw)))) for key, record in part]
        for split, part in plan.parts.items()
    }
    return replace(plan, parts=parts)


def test_tries_again_and_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep.places, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell-this")
    answers = iter([OSError("once"), 7])

    def act() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def refused() -> int:
        raise OSError("key do-not-tell-this at https://me:mine@host/x?token=abc")

    assert patiently("a file", act) == 7
    with pytest.raises(StoreFailed) as caught:
        patiently("a file", refused)
    assert not any(secret in str(caught.value) for secret in ("do-not-tell", "mine", "abc"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "https://host/set"], "https://host/set: nothing can be written over http"),
        (["--out", "s3://me:mine@bucket/set"], "s3://bucket/set: leave user and password out"),
        (["--raw", "https://me:mine@host/raw"], "https://host/raw: leave user and password out"),
        (["--raw", "nowhere://host/raw"], "nowhere://host/raw: fsspec cannot open it"),
        (["--compress", "gzip"], "--compress 'gzip' is unknown; known: none, zstd"),
    ],
)
def test_places_that_cannot_be_are_refused(arguments: list[str], message: str, raw_ddsm: Path, in_folder: Path) -> None:
    given = ["--dataset", "DDSM", *(["--raw", str(raw_ddsm)] if "--raw" not in arguments else []), *arguments]
    with pytest.raises(ValueError) as caught:
        main(parse_args(given))
    assert message in str(caught.value)
    assert not any(in_folder.iterdir())


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/raw", "gcsfs"), ("abfs://box/raw", "adlfs")])
@pytest.mark.parametrize("flag", ["--raw", "--out"])
def test_a_store_without_its_package_says_what_to_install(
    url: str, package: str, flag: str, raw_ddsm: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry

    for module in [name for name in sys.modules if name.split(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    for known in ("gs", "abfs"):
        monkeypatch.delitem(_registry, known, raising=False)
    given = ["--dataset", "DDSM", *([flag, url] if flag == "--raw" else ["--raw", str(raw_ddsm), flag, url])]
    with pytest.raises(ValueError, match=rf"{url}: fsspec cannot open it \([^)]*nstall {package} "):
        main(parse_args(given))
    assert not any(in_folder.iterdir())


def test_slides_are_not_read_from_a_url(in_folder: Path) -> None:
    with pytest.raises(ValueError, match="slides are read from a local disk"):
        main(parse_args(["--dataset", "slides", "--raw", "s3://raw/slides", "--out", str(in_folder / "set")]))


def test_manifests_of_local_and_far_sets_are_one(s3: Any, raw_ddsm: Path, tmp_path: Path) -> None:
    packed = replace(OPTIONS, url="s3://sets/packed", compress="zstd")
    far, local = make(raw_ddsm, tmp_path / "far", packed), make(raw_ddsm, tmp_path / "local")
    assert isinstance(far, Manifest) and far.digest == local.digest
    there = ShardSet("s3://sets/packed", cache=tmp_path / "cache").split("val")
    here = ShardSet(tmp_path / "local").split("val")
    assert [bytes(there.read(i)) for i in range(len(here))] == [bytes(here.read(i)) for i in range(len(here))]
