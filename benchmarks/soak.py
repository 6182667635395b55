"""Does it lose nothing over the whole way? Prep, training on two ranks and analyses, with kills and faults all along.

    python benchmarks/soak.py --images 400 --epochs 20 --seed 1 --minutes 30

On phantoms in DDSM's layout, in a temporary folder: the conversion is killed (SIGKILL) and repeated until it has come
through, and its set is compared, byte by byte, with an undisturbed one. Two ranks train, once undisturbed from the
folder, and once from a loopback HTTP store that refuses, resets, stalls, breaks off and serves wrong bytes, through a
small cache. For `--minutes` that second training is killed over and over, while it starts and a random number of steps
further on: SIGKILL to a rank, to the launcher or to all of them, or a polite SIGTERM, and `--resume` after each. Then
it runs on to its end. Weights, losses and validations must be equal to the last digit, nothing half-written may lie
about, and the memory of the ranks in the last, longest stretch must be flat (medians of its first and last third). Then
k-NN, CKA and L2 are asked. Prints what was done; exit code 1 with any loss.
"""

import argparse
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from faulty_server import Fault, FaultyServer, serve  # noqa: E402

FAULTS = (Fault("reset"), Fault("half"), Fault("wrong"), Fault("status"), Fault("slow", value=2e5), Fault("stalled"))
TRAIN = ("--model", "resnet18", "--start", "ri", "--image-size", "64", "--global-batch", "8", "--order", "windowed",
         "--window", "2", "--partitions", "2",  # a cache of half the set holds what they read at a time
         "--log-every", 1, "--no-tensorboard")  # fmt: skip
CHECKPOINT_EVERY = 10  # steps; a life of up to twice as many goes on by half of it on average
MOST_PREP_KILLS = 40
MARK = "MEDSHARD_LIFE"  # in the environment of all processes of one life of a training
STOP_SECONDS = 900  # a polite stop is heard when the ranks have imported, which takes minutes on a busy machine
GROWTH = 1.05  # of the ranks' memory, at most
WRONG_APART = 12  # requests of a shard between two wrong answers: two in a row say, rightly, that it was altered there
MOST_WAITING = 3  # faults that wait for one shard: more in a row than a fetch has tries is a store that is down


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills and faults along the whole way; nothing may be lost.")
    parser.add_argument("--images", type=int, default=400, help="phantoms")
    parser.add_argument("--epochs", type=int, default=20, help="of the training")
    parser.add_argument("--seed", type=int, default=1, help="of kills and faults")
    parser.add_argument("--minutes", type=float, default=30, help="of the training, in which kills come")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    chance, begun = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medshard-soak-") as folder:
        work = Path(folder)
        raw, plain, beaten, runs = work / "raw", work / "shards", work / "beaten" / "shards", work / "runs"
        shell("prep/phantoms.py", "--dataset", "DDSM", "--out", raw, "--num-images", args.images)
        calm_seconds = shell(*conversion(raw, plain))
        prep_kills = beat_conversion(raw, beaten, chance, calm_seconds)
        same_set = digest_of(plain) == digest_of(beaten)
        say(args.seed, f"conversion: {prep_kills} kills, the same bytes: {same_set}")
        train = ["--epochs", args.epochs, "--checkpoint-every", CHECKPOINT_EVERY, "--out", runs, "--seed", args.seed]
        launch("--shards", plain, "--name", "calm", *train, *TRAIN)
        say(args.seed, f"training, undisturbed: {last_step(runs / 'calm')} steps")
        with serve(beaten) as server, faults(server, args.seed) as served:
            where = ["--shards", server.url, "--cache", work / "cache", "--cache-limit", cache_limit(beaten)]
            kills, memory = beat_training(runs / "beaten", [*where, *train, *TRAIN], chance, args.minutes * 60)
        say(
            args.seed,
            f"training: {kills.total()} kills ({told(kills)}); store: {served.total()} faults ({told(served)})",
        )
        same_run = record_of(runs / "calm") == record_of(runs / "beaten")
        say(args.seed, f"weights, losses and validations equal to the last digit: {same_run}")
        left = left_behind(work, cache_limit(beaten))
        say(args.seed, f"left behind: {', '.join(left) or 'nothing'}")
        early, late = thirds(memory)
        say(args.seed, f"memory of a rank in the last stretch, MiB: {early:.0f} early, {late:.0f} late")
        for name in ("knn", "cka", "l2"):
            shell(f"analysis/{name}.py", runs / "beaten", "--shards", plain)
        say(args.seed, f"analyses done; {args.images} phantoms, {args.epochs} epochs, {time.monotonic() - begun:.0f} s")
    return int(not (same_set and same_run and not left and late <= early * GROWTH))


def say(seed: int, line: str) -> None:
    """A line of the result, as soon as it is known."""
    print(f"[seed {seed}, load {os.getloadavg()[0]:.1f}] {line}", flush=True)


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


def conversion(raw: Path, out: Path) -> list[object]:
    options = ("--short-side", 96, "--shard-samples", 16, "--salt", raw / "phantom.salt")
    return ["prep/make_shards.py", "--dataset", "DDSM", "--raw", raw, "--out", out, *options]


def shell(script: str, *arguments: object) -> float:
    """A script of the project that must succeed; the seconds that it took."""
    begun = time.monotonic()
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def launch(*arguments: object) -> None:
    """An undisturbed training."""
    with started(*arguments) as process:
        assert process.wait() == 0, "the undisturbed training failed"


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A training on two ranks in a session of its own; all its processes bear a mark that no other life has."""
    environment = os.environ | {"RANKS": "2", "OMP_NUM_THREADS": "1", MARK: secrets.token_hex(8)}
    command = [ROOT / "launch.sh", "train", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        yield process


def beat_conversion(raw: Path, out: Path, chance: random.Random, calm_seconds: float) -> int:
    """Kills within the time that it takes undisturbed, until it comes through; how many there were."""
    out.parent.mkdir()
    command = [sys.executable, *map(str, conversion(raw, out))]
    command[1] = str(ROOT / command[1])
    for kills in range(MOST_PREP_KILLS + 1):
        patience = chance.uniform(0.1, 0.5) * (1 + kills / 10) * calm_seconds if kills < MOST_PREP_KILLS else None
        with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
            try:
                assert process.wait(timeout=patience) == 0, "the conversion failed"
                return kills
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("the last conversion is not killed")


def beat_training(
    run: Path, arguments: list[object], chance: random.Random, seconds: float
) -> tuple[Counter[str], list[float]]:
    """Kills and resumes for so long, then on to the end: kinds of kills, and the ranks' MiB in the last stretch."""
    kills, memory = Counter[str](), list[float]()
    deadline = time.monotonic() + seconds
    while not (run / "results.json").exists():
        resumable, before = (run / "config.json").exists(), last_step(run)
        words = ["--resume", run] if resumable else [*arguments, "--name", run.name]
        if not resumable:
            shutil.rmtree(run, ignore_errors=True)
        starting, until = chance.random() < 0.2, time.monotonic() + chance.uniform(0, 30)
        wanted = before + chance.randint(1, 2 * CHECKPOINT_EVERY)
        memory.clear()
        with started(*words) as process:
            while process.poll() is None:
                time.sleep(0.2)
                step, now = last_step(run), time.monotonic()
                if step > before:
                    memory += memory_of(ranks(process.pid))
                if now < deadline and (step >= wanted or (starting and now > until)):
                    kind = stop(process) if chance.random() < 0.25 else kill(process.pid, chance)
                    kills[f"{kind} in a {'step' if step > before else 'start'}"] += 1
                    break
            else:
                assert process.returncode == 0, f"the training ended by itself with code {process.returncode}"
    return kills, memory


def memory_of(processes: list[psutil.Process]) -> list[float]:
    """MiB of each; of none where one has just gone."""
    try:
        return [process.memory_info().rss / 2**20 for process in processes]
    except psutil.Error:
        return []


def stop(launcher: "subprocess.Popen[bytes]") -> str:
    """SIGTERM, which the training answers with a checkpoint and code 75."""
    launcher.terminate()
    code = launcher.wait(timeout=STOP_SECONDS)
    assert code in (0, 75), f"a training that was told to stop ended with code {code}"
    return "stop"


def ranks(launcher: int) -> list[psutil.Process]:
    """The training processes below a launcher."""
    try:
        children = psutil.Process(launcher).children(recursive=True)
        return [
            each for each in children if "run.py" in " ".join(each.cmdline()) and "--local_rank" in str(each.cmdline())
        ]
    except psutil.Error:
        return []


def kill(launcher: int, chance: random.Random) -> str:
    """SIGKILL to a rank, to the launcher, or to everything of the run; which of them. Nothing of the run is left."""
    mark = psutil.Process(launcher).environ().get(MARK, "")
    kind = chance.choice(["rank", "launcher", "all"])
    victims = ranks(launcher)[-1:] if kind == "rank" else [psutil.Process(launcher)] if kind == "launcher" else []
    for victim in victims:
        with_no_error(victim.kill)
    if kind == "launcher":  # what it leaves behind must not write into the run that goes on
        psutil.wait_procs(marked(mark), timeout=20)
    while everything := marked(mark):  # again: a launcher may just have started another
        for each in everything:
            with_no_error(each.kill)
        psutil.wait_procs(everything, timeout=20)
    return kind


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that bear a mark; those that detached themselves, too."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def with_no_error(call: object) -> None:
    """A process that has gone already is dead enough."""
    try:
        call()  # type: ignore[operator]
    except psutil.NoSuchProcess:
        pass


@contextmanager
def faults(server: FaultyServer, seed: int) -> Iterator[Counter[str]]:
    """A fault every three seconds for one of the store's shards; what was injected."""
    chance, done, injected = random.Random(seed), threading.Event(), Counter[str]()
    wrong: dict[str, int] = {}

    def inject() -> None:
        while not done.wait(3.0):
            names = sorted({request.name for request in server.requests if request.name.endswith(".tar")})
            if names:
                fault, name = chance.choice(FAULTS), chance.choice(names)
                waiting, asked = server.faults[name], len(server.asked(name))
                if fault.kind == "wrong":
                    if waiting or asked < wrong.get(name, -WRONG_APART) + WRONG_APART:
                        continue
                    wrong[name] = asked
                if len(waiting) < MOST_WAITING:
                    waiting.append(Fault(fault.kind, 1, fault.value))
                    injected[fault.kind] += 1

    thread = threading.Thread(target=inject, daemon=True)
    thread.start()
    try:
        yield injected
    finally:
        done.set()
        thread.join()


def cache_limit(shards: Path) -> int:
    """Half of the set, so that shards are fetched again; in a small one what the plan reads at a time, and one more."""
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    return max(sum(sizes) // 2, 5 * max(sizes))


def digest_of(folder: Path) -> str:
    """Of all files of a set."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def weights_of(run: Path) -> str:
    """Of the last weights' tensors; their metadata name the run."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run / "weights" / "last.safetensors").items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def records(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def last_step(run: Path) -> int:
    """The newest recorded step of the training."""
    return max((each["step"] for each in records(run) if each["kind"] == "train"), default=0)


def record_of(run: Path) -> dict[str, Any]:
    """What must be equal: weights, losses, validations."""
    kept: dict[str, Any] = {"weights": weights_of(run)}
    for kind, names in (("train", ("step", "loss", "lr")), ("val", ("step", "loss", "roc_auc"))):
        kept[kind] = [[each.get(name) for name in names] for each in records(run) if each["kind"] == kind]
    return kept


def left_behind(work: Path, limit: int) -> list[str]:
    """Half-written files, processes that live on, and a cache that is fuller than it may be."""
    written = [path for path in work.rglob("*") if not path.is_relative_to(work / "cache")]
    found = [str(path.relative_to(work)) for path in written if path.suffix in (".part", ".partial", ".tmp")]
    fuller = sum(path.stat().st_size for path in (work / "cache").rglob("*.tar*")) - limit
    found += [f"{fuller} bytes above the cache's limit"] if fuller > 0 else []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and str(work) in " ".join(process.info["cmdline"] or []):
            found.append(f"process {process.pid}")
    return found


def thirds(memory: list[float]) -> tuple[float, float]:
    """Medians of the first and the last third."""
    part = max(len(memory) // 3, 1)
    return statistics.median(memory[:part]), statistics.median(memory[-part:])


if __name__ == "__main__":
    sys.exit(main(parse_args()))
