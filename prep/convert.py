"""From a raw dataset to a shard set, once: plan, run the tasks, write the manifest.

Everything is written aside, synced and renamed; the manifest comes last, and without it there is no set. An
interrupted run goes on where it stopped: finished shards are verified by their hashes and kept.
"""

import hashlib
import json
import math
import re
from pathlib import Path

from prep.finishing import make_manifest, versions
from prep.planning import ConvertOptions, Planned, make_plan, make_tasks
from prep.pool import Progress, run_tasks
from prep.private import PrivateFolder
from prep.records import RawDataset
from prep.tasks import Outcome, Task, finished, undecodable
from shards.manifest import MANIFEST_NAME, Manifest
from shards.storage import SPLITS_FOLDER

OURS = re.compile(r"\.?(train|val|test)-\d{6}\.(tar|idx|cols)(\.partial)?|\.manifest\.json\.partial")


def convert(
    dataset: RawDataset, root: Path, out: Path, options: ConvertOptions, salt_file: Path | None = None
) -> tuple[Manifest, bool]:
    """Make the shard set at `out`, or go on with it. Returns its manifest and whether there was anything left to do.

    Raises:
        ValueError: whatever is wrong with the raw folder, the options or the output folder, in one line.
    """
    out = out.resolve()
    dataset.require(root)
    _check_output(out)
    private = PrivateFolder(out)
    read_only = not private.path.exists() and not out.exists()
    try:
        with private.locked():
            return _convert(dataset, root, out, private, options, salt_file)
    except BaseException:
        if read_only and not out.exists():
            _drop_unused(private.path)
        raise


def _drop_unused(folder: Path) -> None:
    """Remove a private folder that an input error left with nothing but its lock and a salt that nothing uses."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"none"}
    if names <= {"lock", "salt"}:
        for name in sorted(names):
            (folder / name).unlink()
        folder.rmdir()


def _convert(
    dataset: RawDataset, root: Path, out: Path, private: PrivateFolder, options: ConvertOptions, salt_file: Path | None
) -> tuple[Manifest, bool]:
    if dataset.unpack is not None:
        dataset.unpack(root)
    salt = private.salt(salt_file)
    plan = make_plan(dataset, root, options, salt)
    if (out / MANIFEST_NAME).is_file():
        return _already_done(out, plan, options), False
    out.mkdir(parents=True, exist_ok=True)
    run = hashlib.sha256(json.dumps([plan.set_id, versions()]).encode()).hexdigest()[:16]
    outcomes = private.path / "outcomes" / run
    outcomes.mkdir(parents=True, exist_ok=True)
    rows = [(key, r.source, r.group, split) for split, part in plan.parts.items() for key, r in part]
    private.write_table("sources.csv", ("key", "source", "group", "split"), rows)
    tasks = make_tasks(plan, out, outcomes, options, salt)
    results = _run(plan, tasks, private, options)
    manifest = make_manifest(plan, tasks, results, options)
    _tidy(out, private, {info.stem for split in manifest.splits.values() for info in split.shards})
    manifest.write(out)
    _forget_outcomes(private)
    return manifest, True


def _already_done(out: Path, plan: Planned, options: ConvertOptions) -> Manifest:
    manifest = Manifest.read(out)
    if manifest.set_id != plan.set_id:
        raise ValueError(
            f"{out} already holds another finished set (other raw files, options, seed or salt): choose another "
            "--out, or "
            f"delete {out} and {out.name}.private first"
        )
    for info in (info for split in manifest.splits.values() for info in split.shards):
        if not (out / info.name).is_file() or (out / info.name).stat().st_size != info.bytes:
            raise ValueError(f"{out / info.name} is not what the manifest says: run prep/check_shards.py {out}")
    if options.strict and manifest.left_out:
        raise undecodable(manifest.left_out[0].key, manifest.left_out[0].reason, out)
    return manifest


def _check_output(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another --out")
    finished_set = not out.is_dir() or (out / MANIFEST_NAME).is_file()
    strangers = (
        []
        if finished_set
        else sorted(p.name for p in out.iterdir() if not OURS.fullmatch(p.name) and p.name != SPLITS_FOLDER)
    )
    if strangers:
        raise ValueError(f"{out} holds files that are not a shard set's ({strangers[0]} …): choose an empty --out")


def _run(plan: Planned, tasks: list[Task], private: PrivateFolder, options: ConvertOptions) -> dict[str, Outcome]:
    results = {task.stem: outcome for task in tasks if (outcome := finished(task)) is not None}
    sources = {key: record.source for part in plan.parts.values() for key, record in part}
    allowed = math.floor(options.max_bad * plan.num_samples)
    open_tasks = [task for task in tasks if task.stem not in results]

    def bad() -> list[tuple[str, str, str, str]]:
        done = ((task, results[task.stem]) for task in tasks if task.stem in results)
        return [(key, sources[key], task.split, reason) for task, o in done for key, reason in o.left_out]

    def check() -> None:
        rows = bad()
        if rows:
            private.write_table("left_out.csv", ("key", "source", "split", "reason"), rows)
        if rows and options.strict:
            raise undecodable(rows[0][0], rows[0][3], private.out)
        if len(rows) > allowed:
            raise ValueError(
                f"{len(rows)} of {plan.num_samples} images do not decode, more than --max-bad {options.max_bad:g} "
                "allows; the "
                f"first: {rows[0][0]} ({rows[0][3]}). All stand in {private.path.name}/left_out.csv"
            )

    def done(task: Task, outcome: Outcome) -> None:
        results[task.stem] = outcome
        if outcome.left_out:
            check()

    check()
    already = sum(len(task.items) for task in tasks) - sum(len(task.items) for task in open_tasks)
    progress = Progress(plan.num_samples, already, options.quiet)
    try:
        run_tasks(open_tasks, options.workers, progress, done)
    except OSError as error:
        raise ValueError(
            f"writing {private.out} failed ({error.strerror or type(error).__name__}): free space or mend the disk, "
            "then run "
            f"the same command; finished shards are kept"
        ) from error
    finally:
        progress.bar.close()
    return results


def _tidy(out: Path, private: PrivateFolder, stems: set[str]) -> None:
    """Remove what an unfinished run with other options left in the output folder."""
    for path in out.iterdir():
        if OURS.fullmatch(path.name) and path.name.split(".")[0] not in stems:
            path.unlink()
    if not (private.path / "left_out.csv").is_file():
        private.write_table("left_out.csv", ("key", "source", "split", "reason"), [])


def _forget_outcomes(private: PrivateFolder) -> None:
    root = private.path / "outcomes"
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if root.is_dir():
        root.rmdir()
