"""From a raw dataset to a shard set, once: plan, run the tasks, write the manifest.

Everything is written aside, synced and renamed; the manifest comes last, and without it there is no set. An
interrupted run goes on where it stopped: finished shards are verified by their hashes and kept.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prep.buckets import left_out_of
from prep.delivery import deliver_manifest, listing, read_manifest, remove
from prep.finishing import make_manifest, near_duplicates, versions
from prep.fold_files import check_folds
from prep.gathering import Bucket, with_buckets
from prep.left_out import LeftOut, any_mended
from prep.places import StoreFailed, is_far
from prep.planning import ConvertOptions, Planned, make_plan, make_tasks
from prep.pool import Done, Progress, T, run_tasks
from prep.private import PrivateFolder
from prep.records import RawDataset
from prep.tasks import Outcome, Task, finished, keep, undecodable
from shards.manifest import MANIFEST_NAME, Manifest
from shards.redaction import shown

NEAR_DUPLICATES = "near_duplicates.csv"
OURS = re.compile(
    r"\.?(train|val|test)-\d{6}\.(tar|idx|cols)(\.[0-9a-f-]+)?(\.zst)?(\.[0-9-]+)?(\.partial)?|\.manifest\.json\.partial"
)


def convert(
    dataset: RawDataset, root: Path, out: Path, options: ConvertOptions, salt_file: Path | None = None
) -> tuple[Manifest, bool]:
    """Make the shard set at `out`, or go on with it. Returns its manifest and whether there was anything left to do.

    Raises:
        ValueError: whatever is wrong with the raw folder, the options or the output folder, in one line.
    """
    out = out.resolve()
    dataset.require(root)
    _check_output(out, options.url)
    private = PrivateFolder(out)
    read_only = not private.path.exists() and not out.exists()
    absent = [folder for folder in out.parents if not folder.exists()]  # the nearest first
    with private.locked():  # what is dropped is this run's own: no other one may come meanwhile
        try:
            return _convert(dataset, root, out, private, options, salt_file)
        except BaseException:
            if read_only and not out.exists():
                _drop_unused(private.path, absent)
            raise


def _drop_unused(folder: Path, around: list[Path]) -> None:
    """Remove a private folder that an input error left with nothing but its lock and a salt that nothing uses, and the
    folders `around` it that were made for it.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"none"}
    if names <= {"lock", "salt"}:
        for name in sorted(names):
            (folder / name).unlink()
        with suppress(OSError):  # NFS keeps the open lock under another name until it is closed
            folder.rmdir()
        for path in around:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _convert(
    dataset: RawDataset, root: Path, out: Path, private: PrivateFolder, options: ConvertOptions, salt_file: Path | None
) -> tuple[Manifest, bool]:
    if dataset.unpack is not None and not is_far(root):
        dataset.unpack(root)
    salt = private.salt(salt_file)
    plan = make_plan(dataset, root, options, salt)
    if options.folds is not None:
        check_folds(plan, options.folds)
    if (done := _finished_set(out, options)) is not None:
        done = _already_done(done, out, plan, options)
        _forget(private, "buckets", "outcomes")
        return done, False
    if options.cluster is not None:
        from prep.cluster import check_scheduler  # Dask is needed only there

        check_scheduler(options.cluster)
    if options.url is None:
        out.mkdir(parents=True, exist_ok=True)
    made_with = [plan.set_id, versions(compress=options.compress == "zstd"), options.compress, options.url]
    run = hashlib.sha256(json.dumps(made_with).encode()).hexdigest()[:16]
    outcomes = private.path / "outcomes" / run
    outcomes.mkdir(parents=True, exist_ok=True)
    rows = [(key, r.source, r.group, split) for split, part in plan.parts.items() for key, r in part]
    private.write_table("sources.csv", ("key", "source", "group", "split"), rows)
    tasks = make_tasks(plan, out, outcomes, options, salt)
    buckets: list[Bucket] = []
    if options.cluster is None or options.url is None:  # else there is no folder that all workers see
        tasks, buckets = with_buckets(tasks, private.path / "buckets" / run)
    results = _run(plan, root, tasks, buckets, private, options)
    manifest = make_manifest(plan, tasks, results, options, _near_duplicates(plan, tasks, results, private, options))
    _tidy(out, manifest, options.url)
    if options.url is None:
        manifest.write(out)
    else:
        deliver_manifest(manifest, options.url)
    _forget(private, "buckets", "outcomes")
    return manifest, True


def _near_duplicates(
    plan: Planned, tasks: list[Task], results: dict[str, Outcome], private: PrivateFolder, options: ConvertOptions
) -> list[str]:
    """Write the table of images alike in two splits, where it is asked for; what the manifest says of it."""
    if not options.near_duplicates:
        (private.path / NEAR_DUPLICATES).unlink(missing_ok=True)  # of a run that never ended
        return []
    sources = {key: record.source for part in plan.parts.values() for key, record in part}
    rows, warnings = near_duplicates(tasks, results, sources)
    private.write_table(NEAR_DUPLICATES, ("source", "split", "other_source", "other_split", "similarity"), rows)
    return warnings


def _finished_set(out: Path, options: ConvertOptions) -> Manifest | None:
    if options.url is not None:
        return read_manifest(options.url)
    return Manifest.read(out) if (out / MANIFEST_NAME).is_file() else None


def _already_done(manifest: Manifest, out: Path, plan: Planned, options: ConvertOptions) -> Manifest:
    shards = [info for split in manifest.splits.values() for info in split.shards]
    if manifest.set_id != plan.set_id:
        raise ValueError(
            f"{_place(out, options)} already holds another finished set (other raw files, options, seed or salt): "
            f"choose another --out, or delete it and {out.name}.private first"
        )
    if any(info.packed != (options.compress == "zstd") for info in shards):
        raise ValueError(
            f"{_place(out, options)} already holds this set with other --compress: choose another --out, or copy it"
        )
    there = _sizes(out, options.url)
    for info in shards:
        name, size = (f"{info.name}.zst", info.packed_bytes) if info.packed else (info.name, info.bytes)
        if there.get(name) != size:
            raise ValueError(
                f"{name} in {_place(out, options)} is not what the manifest says: run prep/check_shards.py there"
            )
    if options.near_duplicates and not (out.with_name(f"{out.name}.private") / NEAR_DUPLICATES).is_file():
        raise ValueError(
            f"{_place(out, options)} already holds this set, made without --near-duplicates: choose another --out, "
            f"with --salt {out}.private/salt for the same images"
        )
    if options.strict and manifest.left_out:
        raise undecodable(manifest.left_out[0].key, manifest.left_out[0].reason, out)
    return manifest


def _place(out: Path, options: ConvertOptions) -> str:
    return str(out) if options.url is None else shown(options.url)


def _sizes(out: Path, url: str | None) -> dict[str, int]:
    """The files of the output folder, by name."""
    if url is not None:
        return listing(url)
    return {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()} if out.is_dir() else {}


def _check_output(out: Path, url: str | None) -> None:
    if url is None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another --out")
    names = _sizes(out, url)
    strangers = 0 if MANIFEST_NAME in names else sum(not OURS.fullmatch(name) for name in names)
    if strangers:
        where = out if url is None else shown(url)
        raise ValueError(f"{where} holds files that are not a shard set's ({strangers} of them): choose an empty --out")


def _run(
    plan: Planned,
    root: Path,
    tasks: list[Task],
    buckets: list[Bucket],
    private: PrivateFolder,
    options: ConvertOptions,
) -> dict[str, Outcome]:
    there = _sizes(private.out, options.url) if options.url is not None else {}
    results: dict[str, Outcome] = {}
    left_out = LeftOut(plan, private, options)

    def done(task: Task, outcome: Outcome) -> None:
        keep(task, outcome)
        results[task.stem] = outcome
        left_out.add(outcome.left_out)

    with _in_one_line(private.out):
        for task in tasks:
            outcome = finished(task, there)
            if outcome is not None and not any_mended(task.items, outcome.left_out, task.pixels):
                results[task.stem] = outcome
        left_out.add([pair for outcome in results.values() for pair in outcome.left_out])
        open_tasks = [task for task in tasks if task.stem not in results]
        if open_tasks:
            _fill(buckets, private, root, options, left_out)
        already = sum(len(task.items) for task in tasks) - sum(len(task.items) for task in open_tasks)
        _run_all(open_tasks, root, Progress(plan.num_samples, already, options.quiet), done, options)
    return results


def _fill(
    buckets: list[Bucket], private: PrivateFolder, root: Path, options: ConvertOptions, left_out: LeftOut
) -> None:
    """Fill the buckets that are not there yet, and drop those of runs with other options."""
    for path in (private.path / "buckets").glob("*"):
        if not buckets or path != buckets[0].folder:
            _forget(private, f"buckets/{path.name}")
    if not buckets:
        return
    buckets[0].folder.mkdir(parents=True, exist_ok=True)
    empty = [bucket for bucket in buckets if not _whole(bucket, left_out)]
    total, left = (sum(len(bucket.items) for bucket in some) for some in (buckets, empty))
    progress = Progress(total, total - left, options.quiet, "reading")
    _run_all(empty, root, progress, lambda bucket, outcome: left_out.add(outcome.left_out), options)


def _whole(bucket: Bucket, left_out: LeftOut) -> bool:
    """Whether a bucket is there and holds all that can be read; what it does not hold is noted."""
    found = left_out_of(bucket.path)
    if found is None or any_mended(bucket.items, found, bucket.pixels):
        return False
    left_out.add(found)
    return True


def _run_all(tasks: list[T], root: Path, progress: Progress, done: Done[T], options: ConvertOptions) -> None:
    """Run tasks where the options say."""
    try:
        if options.cluster is not None:
            from prep.cluster import run_on_cluster

            run_on_cluster(tasks, options.cluster, root, progress, done)
        else:
            run_tasks(tasks, options.workers, progress, done)
    finally:
        progress.bar.close()


@contextmanager
def _in_one_line(out: Path) -> Iterator[None]:
    """What a disk or a store ends a run with, as ValueError in one line."""
    try:
        yield
    except StoreFailed as error:
        raise ValueError(f"{error}; finished shards are kept") from None
    except OSError as error:
        raise ValueError(
            f"writing {out} failed ({error.strerror or type(error).__name__}): free space or mend the disk, "
            "then run "
            f"the same command; finished shards are kept"
        ) from error


def _tidy(out: Path, manifest: Manifest, url: str | None) -> None:
    """Remove what other runs left in the output folder: shards of other options, and what a killed worker had begun."""
    kept = {MANIFEST_NAME}
    for info in (info for split in manifest.splits.values() for info in split.shards):
        kept |= {f"{info.name}.zst" if info.packed else info.name, f"{info.stem}.cols", f"{info.stem}.idx"}
    if url is not None:
        remove(url, OURS, kept)
    for path in out.iterdir() if url is None else []:
        if OURS.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _forget(private: PrivateFolder, *names: str) -> None:
    """Remove folders of the private folder that a finished set does not need."""
    for name in names:
        if (private.path / name).is_dir():
            shutil.rmtree(private.path / name)
