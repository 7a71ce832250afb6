"""A process of one rank: holds its part of the layers, and follows the steps of the first rank.

``python -m helixreal.engines.rank_process``; commands come by standard input, until its end.
"""

from __future__ import annotations

import os
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import IO

import torch

from helixreal.engines import rank_messages as messages
from helixreal.engines.layer_shard import (
    LayerShard,
    open_weights,
    too_little_memory,
    torch_device,
)
from helixreal.engines.model_config import read_llama_config
from helixreal.engines.paged_attention import Span
from helixreal.engines.rank_group import RankGroup
from helixreal.engines.sharding import Shard
from helixsim.errors import HelixError


class RankProcess:
    """Carries out the commands of one rank.

    Parameters
    ----------
    load
        What it loads.
    """

    def __init__(self, load: messages.Load) -> None:
        spec = load.spec
        assert spec.model is not None
        self._load = load
        self._device = torch_device(spec.devices[load.rank])
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        config = read_llama_config(spec.model)
        self._hidden_size = config.hidden_size
        shard = Shard(load.rank, load.num_ranks)
        with open_weights(spec, self._device) as weights:
            self._layers = LayerShard(spec, weights, config, self._device, shard)
        self.room = self._layers.room()
        self._group: RankGroup | None = None

    def carry_out(self, command: messages.Command) -> None:
        """Carry out one command."""
        match command:
            case messages.Allocate():
                self._layers.allocate(command.num_blocks)
                load = self._load
                self._group = RankGroup(load.store, load.rank, load.num_ranks, self._device)
            case messages.Clear():
                self._layers.clear(command.blocks)
            case messages.Run():
                self._run(command)
            case messages.Load():
                raise ValueError("the layers have been loaded")

    def _run(self, command: messages.Run) -> None:
        assert self._group is not None
        with torch.inference_mode():
            spans = [Span(*span) for span in command.spans]
            num_tokens = sum(span.num_tokens for span in spans)
            hidden = torch.empty(
                num_tokens, self._hidden_size, dtype=self._dtype, device=self._device
            )
            hidden = self._group.broadcast(hidden)
            batch = self._layers.describe(spans)
            self._layers.run(hidden, batch, command.start_layer, command.end_layer, self._group.sum)


def _read_commands(pipe: IO[bytes], commands: SimpleQueue[messages.Command]) -> None:
    """Queue all commands; end the process at the end of the pipe, even within a step."""
    while (command := messages.receive_command(pipe)) is not None:
        commands.put(command)
    os._exit(0)


def main() -> None:
    """Load the layers, then carry out commands until the first rank ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the first rank
    commands: SimpleQueue[messages.Command] = SimpleQueue()
    reader = Thread(target=_read_commands, args=(sys.stdin.buffer, commands), daemon=True)
    reader.start()
    load = commands.get()
    assert isinstance(load, messages.Load)
    # Whatever else is printed goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        rank = RankProcess(load)
    except torch.OutOfMemoryError:
        no_room = too_little_memory(load.spec, load.spec.devices[load.rank])
        messages.send(answers, messages.Refused(str(no_room)))
        return
    except HelixError as error:
        messages.send(answers, messages.Refused(str(error)))
        return
    messages.send(answers, messages.Loaded(rank.room))
    while True:
        rank.carry_out(commands.get())


if __name__ == "__main__":
    main()
