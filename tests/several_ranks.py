"""Starts a function on several ranks of this machine, as torchrun would."""

from __future__ import annotations

import os
import socket

import torch
from torch import multiprocessing

from pipeline.learning.ranks import Ranks


def start(function, *given, ranks: int = 2) -> None:
    """Call `function(Ranks, *given)` in `ranks` processes joined by gloo; raises what one raises.

    `function` is one of a module's own, since processes are new ones: forked from a server that
    has imported torch and nothing else.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["torch.distributed"])
    multiprocessing.start_processes(
        _child, (ranks, port, function, given), nprocs=ranks, start_method="forkserver"
    )


def _child(rank: int, ranks: int, port: int, function, given) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    joined = Ranks.from_environment("cpu")
    try:
        function(joined, *given)
    finally:
        joined.close()
