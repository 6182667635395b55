"""C of this project, compiled where it is first used and called without the GIL.

The compiler is the machine's own (`cc`; DeepSpeed wants one, too). What it makes is kept in the user's cache folder
under a name made of the source, the flags and the processor, so that machines that share a home keep apart. Without a
compiler, or with MEDSHARD_NATIVE=0, torch and NumPy do the same work more slowly.
"""

import ctypes
import logging
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import blake2b
from pathlib import Path

log = logging.getLogger(__name__)
ALWAYS = ("-O3", "-march=native", "-shared", "-fPIC")


@cache
def compiled(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    """Return the functions of a C file; None where they cannot be had, with the reason in the log."""
    if os.environ.get("MEDSHARD_NATIVE", "1") == "0":
        return None
    try:
        return _loaded(source, flags)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s was not compiled, torch and NumPy do its work more slowly: %s", source.name, _telling(error))
        return None


def _loaded(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """From the cache folder; where that cannot be written or its file not loaded, from a folder of this process."""
    try:
        return ctypes.CDLL(str(_built(source, flags, cache_folder())))
    except (OSError, RuntimeError):  # Path.home knows none for a user without an entry, as in containers
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_built(source, flags, Path(folder))))


def _telling(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return (text.strip().splitlines() or [""])[0]


def cache_folder() -> Path:
    """Where compiled files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medshard"


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("flags", "features", "model name", "cpu part")
    return "\n".join(sorted({line for line in lines if line.lower().startswith(wanted)})) or platform.processor()


def _built(source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """The compiled file, made now if it is not there; whole at any moment, however many processes make it.

    Its name ends in its size: loading a file that was cut short since would end the process (SIGBUS).
    """
    compiler = (os.environ.get("CC") or "cc").split()
    name = "\n".join([source.read_text(), *ALWAYS, *flags, *compiler, sys.platform, _processor()])
    stem = f"{source.stem}-{blake2b(name.encode(), digest_size=8).hexdigest()}"
    for made in folder.glob(f"{stem}-*.so"):
        if made.name == f"{stem}-{made.stat().st_size}.so":
            return made
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        new = Path(aside) / f"{source.stem}.so"
        command = [*compiler, *ALWAYS, *flags, "-o", str(new), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return new.replace(folder / f"{stem}-{new.stat().st_size}.so")
