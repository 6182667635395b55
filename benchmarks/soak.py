"""Does it lose nothing over the whole way? Prep, training on two ranks and analyses, with kills and faults all along.

    python benchmarks/soak.py --images 400 --epochs 6 --seed 1 --minutes 45

On phantoms in DDSM's layout, in a temporary folder: the conversion is killed (SIGKILL) and repeated until it has come
through, and its set is compared, byte by byte, with an undisturbed one. Two ranks train, once undisturbed from the
folder, and once from a loopback HTTP store that refuses, resets, stalls, breaks off and serves wrong bytes, through a
small cache, with SIGKILL to a rank, to the launcher or to all of them at random moments, and `--resume` after each. The
weights must be equal to the last bit. Then k-NN, CKA and L2 are asked. Prints what was done and the memory of the ranks
over time (median of the first and of the last third: it must be flat). Seeds are printed; exit code 1 with any loss.
"""

import argparse
import hashlib
import os
import random
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

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from faulty_server import Fault, FaultyServer, serve  # noqa: E402

FAULTS = (Fault("reset"), Fault("half"), Fault("wrong"), Fault("status"), Fault("slow", value=2e5), Fault("stalled"))
TRAIN = ("--model", "resnet18", "--start", "ri", "--image-size", "64", "--global-batch", "8", "--order", "windowed",
         "--window", "2", "--partitions", "2")  # fmt: skip # a cache of half the set holds what they read at a time
MOST_WAITING = 3  # faults that wait for one shard: more in a row than a fetch has tries is a store that is down


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills and faults along the whole way; nothing may be lost.")
    parser.add_argument("--images", type=int, default=400, help="phantoms")
    parser.add_argument("--epochs", type=int, default=6, help="of the training")
    parser.add_argument("--seed", type=int, default=1, help="of kills and faults")
    parser.add_argument("--minutes", type=float, default=45, help="after which no more kills come")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    chance, begun = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medshard-soak-") as folder:
        work = Path(folder)
        raw, plain, beaten = work / "raw", work / "shards", work / "beaten" / "shards"
        shell("prep/phantoms.py", "--dataset", "DDSM", "--out", raw, "--num-images", args.images)
        shell(*conversion(raw, plain))
        prep_kills = beat_conversion(raw, beaten, chance)
        same_set = digest_of(plain) == digest_of(beaten)
        train = ["--epochs", args.epochs, "--checkpoint-every", 10, "--out", work / "runs", "--seed", args.seed, *TRAIN]
        launch("--shards", plain, "--name", "calm", *train)
        deadline = begun + args.minutes * 60
        with serve(beaten) as server, faults(server, args.seed) as served:
            where = ["--shards", server.url, "--cache", work / "cache", "--cache-limit", cache_limit(beaten)]
            kills, memory = beat_training(work / "runs" / "beaten", [*where, *train], chance, deadline)
        same_weights = weights_of(work / "runs" / "calm") == weights_of(work / "runs" / "beaten")
        for name in ("knn", "cka", "l2"):
            shell(f"analysis/{name}.py", work / "runs" / "beaten", "--shards", plain)
        early, late = thirds(memory)
        print(f"seed {args.seed}, {args.images} phantoms, {args.epochs} epochs, {time.monotonic() - begun:.0f} s")
        print(f"conversion: {prep_kills} kills, the same bytes: {same_set}")
        print(f"store: {sum(served.values())} faults ({', '.join(f'{k} {n}' for k, n in sorted(served.items()))})")
        print(f"training: {sum(kills.values())} kills ({', '.join(f'{k} {n}' for k, n in sorted(kills.items()))})")
        print(f"the same weights: {same_weights}; memory of the ranks, GiB: {early:.2f} early, {late:.2f} late")
    return int(not (same_set and same_weights))


def conversion(raw: Path, out: Path) -> list[object]:
    options = ("--short-side", 96, "--shard-samples", 16, "--salt", raw / "phantom.salt")
    return ["prep/make_shards.py", "--dataset", "DDSM", "--raw", raw, "--out", out, *options]


def shell(script: str, *arguments: object) -> None:
    """A script of the project that must succeed."""
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def launch(*arguments: object) -> None:
    """An undisturbed training."""
    with started(*arguments) as process:
        assert process.wait() == 0, "the undisturbed training failed"


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A training on two ranks in a session of its own."""
    environment = os.environ | {"RANKS": "2", "OMP_NUM_THREADS": "1"}
    command = [ROOT / "launch.sh", "train", *map(str, arguments)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        yield process


def beat_conversion(raw: Path, out: Path, chance: random.Random) -> int:
    """Kills until a conversion comes through; how many there were."""
    out.parent.mkdir()
    for kills in range(1000):
        command = [sys.executable, ROOT / str(conversion(raw, out)[0]), *map(str, conversion(raw, out)[1:])]
        with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
            try:
                code = process.wait(timeout=chance.uniform(0.5, 2.0) * (1 + kills / 20))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                continue
        assert code == 0, "the conversion failed"
        return kills
    raise AssertionError("a thousand kills, and the conversion has not come through")


def beat_training(
    run: Path, arguments: list[object], chance: random.Random, deadline: float
) -> tuple[Counter[str], list[float]]:
    """Kills and resumes until the training has ended: kinds of kills, and the ranks' memory in GiB over time."""
    kills: Counter[str] = Counter()
    memory: list[float] = []
    while not (run / "results.json").exists():
        resumable = (run / "config.json").exists()
        words = ["--resume", run] if resumable else [*arguments, "--name", run.name]
        if not resumable:
            shutil.rmtree(run, ignore_errors=True)
        patience = chance.uniform(15, 60) if time.monotonic() < deadline else float("inf")
        with started(*words) as process:
            until = time.monotonic() + patience
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
                memory += [rank.memory_info().rss / 2**30 for rank in ranks(process.pid)]
            if process.poll() is None:
                kills[kill(process.pid, chance)] += 1
            else:
                assert process.returncode == 0, f"the training ended by itself with code {process.returncode}"
            process.wait()
    return kills, memory


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
    """SIGKILL to a rank, to the launcher, or to everything of the run; which of them."""
    everything = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
    kind = chance.choice(["rank", "launcher", "all"])
    victims = ranks(launcher)[-1:] if kind == "rank" else everything[:1] if kind == "launcher" else everything
    for victim in victims:
        with_no_error(victim.kill)
    if kind == "launcher":  # what it leaves behind must not write into the run that goes on
        psutil.wait_procs(everything[1:], timeout=20)
    for victim in everything:
        with_no_error(victim.kill)
    psutil.wait_procs(everything, timeout=20)
    return kind


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

    def inject() -> None:
        while not done.wait(3.0):
            names = sorted({request.name for request in server.requests if request.name.endswith(".tar")})
            if names:
                fault, waiting = chance.choice(FAULTS), server.faults[chance.choice(names)]
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
    """Half of the set, so that shards are fetched again."""
    return sum(path.stat().st_size for path in shards.glob("*.tar")) // 2


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


def thirds(memory: list[float]) -> tuple[float, float]:
    """Medians of the first and the last third."""
    part = max(len(memory) // 3, 1)
    return statistics.median(memory[:part]), statistics.median(memory[-part:])


if __name__ == "__main__":
    sys.exit(main(parse_args()))
