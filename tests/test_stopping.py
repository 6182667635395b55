"""A wish to stop is heard while C code waits for other ranks. Run: pytest tests/test_stopping.py"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

WAITING = """
import os, signal
import torch.distributed as dist
from datetime import timedelta
from train.stopping import Wish, ending_while_waiting
with Wish(), ending_while_waiting():
    print("waiting", flush=True)
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_rank_whose_peers_never_come_ends_at_a_signal(number: signal.Signals, code: int) -> None:
    """Without it, half an hour later: the handlers of `Wish` wait until the connection is given up."""
    peers = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=os.environ | peers,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and "nothing had begun" in said, said
