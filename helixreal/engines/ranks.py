"""The other ranks of a tensor-parallel torch engine, as seen by the first: child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

import torch

from helixreal.engines import failures
from helixreal.engines import rank_messages as messages
from helixreal.engines.engine import EngineSpec
from helixreal.engines.paged_attention import Span
from helixreal.engines.rank_group import RankGroup
from helixsim.errors import InputError

_LEAVE_S = 5.0
_NOTICE_S = 1.0


def check_devices(names: Sequence[str]) -> None:
    """Check the names of the devices of one engine.

    Raises
    ------
    InputError
        If a name is empty, they are of several types, or one GPU is named twice.
    """
    if not all(names):
        raise InputError(
            f"'{','.join(names)}' has an empty name; write, for example, cuda:0,cuda:1",
            where="device",
        )
    types = dict.fromkeys(name.partition(":")[0] for name in names)
    if len(types) > 1:
        raise InputError(
            f"the devices of a node must be of one type, not {' and '.join(types)}",
            where="device",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and twice[0] != "cpu":
        raise InputError(f"'{twice[0]}' is named twice; name each GPU once", where="device")


class Ranks:
    """The ranks 1, 2, ... of an engine. They load their layers while rank 0 loads its own.

    Parameters
    ----------
    spec
        Settings of the engine, with several devices.

    Attributes
    ----------
    group
        Rank 0 among the ranks; since :meth:`agree`.
    lost
        Which rank has ended, and how; None while all run.
    """

    group: RankGroup

    def __init__(self, spec: EngineSpec) -> None:
        self._devices = spec.devices
        self._folder = tempfile.TemporaryDirectory(prefix="helixreal-ranks-")
        self._store = str(Path(self._folder.name) / "store")
        self._lock = Lock()
        self._is_closing = False
        self.lost: str | None = None
        environment = dict(os.environ)
        if spec.devices[0] == "cpu":
            share = max(1, (os.cpu_count() or 1) // len(spec.devices))
            environment.setdefault("OMP_NUM_THREADS", str(share))
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, len(spec.devices)):
            process = subprocess.Popen(
                [sys.executable, "-m", "helixreal.engines.rank_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            self._processes.append(process)
            self._send_to(rank, messages.Load(spec, rank, len(spec.devices), self._store))

    def agree(self, num_blocks: int) -> int:
        """Wait until all ranks have loaded their layers, and connect to them.

        Parameters
        ----------
        num_blocks
            Number of KV blocks for which rank 0 has memory.

        Returns
        -------
        int
            Number of KV blocks for which all ranks have memory; they have allocated them.

        Raises
        ------
        InputError
            If a rank cannot load its layers.
        """
        for rank, process in enumerate(self._processes, start=1):
            assert process.stdout is not None
            answer = messages.receive_answer(process.stdout)
            if answer is None:
                raise InputError(f"{self._name(rank)} has ended with exit code {process.wait()}")
            if isinstance(answer, messages.Refused):
                raise InputError(f"{self._name(rank)}: {answer.reason}")
            num_blocks = min(num_blocks, answer.num_blocks)
        self._send(messages.Allocate(num_blocks))
        device = torch.device(self._devices[0])
        self.group = RankGroup(self._store, 0, len(self._devices), device)
        for rank in range(1, len(self._devices)):
            Thread(target=self._watch, args=(rank,), name=f"rank {rank}", daemon=True).start()
        return num_blocks

    def _name(self, rank: int) -> str:
        return f"rank {rank} (device {self._devices[rank]})"

    def _watch(self, rank: int) -> None:
        """Note the end of a rank."""
        code = self._processes[rank - 1].wait()
        if not self._is_closing and self.lost is None:
            self.lost = f"{self._name(rank)} has ended with exit code {code}"

    def reason_of(self, error: Exception) -> str:
        """Why a step has failed: a rank that has ended, else the error of this rank."""
        # A connection may break a little before the end of its process is known.
        until_s = time.monotonic() + _NOTICE_S
        while self.lost is None and time.monotonic() < until_s:
            time.sleep(0.01)
        return self.lost or failures.reason_of(error)

    # -- commands ------------------------------------------------------------------------------

    def run(self, spans: Sequence[Span], start_layer: int, end_layer: int) -> None:
        """Let all ranks run layers; the hidden states must follow by :attr:`group`."""
        rows = [(span.position, span.num_tokens, list(span.blocks)) for span in spans]
        self._send(messages.Run(start_layer, end_layer, rows))

    def clear(self, blocks: Sequence[int]) -> None:
        """Let all ranks clear KV blocks."""
        self._send(messages.Clear(list(blocks)))

    def _send(self, command: messages.Command) -> None:
        # Blocks are cleared by another thread than the one that runs steps.
        with self._lock:
            for rank in range(1, len(self._devices)):
                self._send_to(rank, command)

    def _send_to(self, rank: int, command: messages.Command) -> None:
        pipe = self._processes[rank - 1].stdin
        assert pipe is not None
        with suppress(BrokenPipeError):  # noted where its end is noted
            messages.send(pipe, command)

    def close(self) -> None:
        """End all ranks."""
        self._is_closing = True
        for process in self._processes:
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()  # each ends at the end of its input
        for process in self._processes:
            try:
                process.wait(timeout=_LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._folder.cleanup()
