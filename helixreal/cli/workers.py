"""Commands that start workers, stop a cluster, and make keys."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from helixreal.cli.options import (
    DeviceOption,
    DtypeOption,
    DummyOption,
    EngineOption,
    InsecureOption,
    KeysOption,
    KvMemoryOption,
    ModelOption,
    OptionsOption,
    bytes_of,
    options_of,
    seconds_of,
    start_logging,
)

_SIGNALLED = 128
"""Exit codes above this name the signal that has ended a process."""

if TYPE_CHECKING:
    from helixreal.inventory import Inventory


def worker(
    node: Annotated[str, typer.Option(metavar="NAME", help="Name of this machine's node.")],
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the coordinator.")
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", metavar="FILE", help="Inventory file, instead of all other options."
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Address of this worker.")
    ] = "127.0.0.1",
    engine: EngineOption = "emulated",
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    kv_memory: KvMemoryOption = None,
    options: OptionsOption = None,
    keys: KeysOption = None,
    give_up_after: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="End with an error when the coordinator is silent for longer."
        ),
    ] = "30 min",
    *,
    dummy_weights: DummyOption = False,
    insecure: InsecureOption = False,
    end_with_stdin: Annotated[
        bool,
        typer.Option("--end-with-stdin", help="End when standard input is closed.", hidden=True),
    ] = False,
) -> None:
    """Run the layers that the coordinator assigns to this node, until shutdown.

    A worker that does not hear the coordinator tries to join again. It ends when it is told to.
    """
    from helixreal.inventory import NodeEntry, load_inventory, tcp_address
    from helixreal.net.transport import Keys, Transport
    from helixreal.worker.settings import WorkerSettings
    from helixreal.worker.worker import Worker
    from helixsim.errors import InputError

    start_logging(node)
    if (coordinator is None) == (inventory is None):
        raise InputError("give either --coordinator or --inventory")
    if inventory is not None:
        found = load_inventory(inventory)
        coordinator_address, entry = found.coordinator, found.node(node, inventory)
        keys = keys or found.keys
    else:
        coordinator_address = tcp_address((coordinator or "").removeprefix("tcp://"), 7000)
        entry = NodeEntry(
            address=tcp_address(listen, 0),
            engine=engine,
            model=None if model is None else str(model),
            device=device,
            dtype=dtype,
            kv_memory_bytes=bytes_of(kv_memory, "--kv-memory"),
            dummy_weights=dummy_weights,
            options=options_of(options),
        )
    settings = WorkerSettings(
        node=node,
        coordinator=coordinator_address,
        engine=entry.engine,
        give_up_after_s=seconds_of(give_up_after, "--give-up-after"),
        model=entry.model,
        device=entry.device,
        dtype=entry.dtype,
        kv_memory_bytes=entry.kv_memory_bytes,
        dummy_weights=entry.dummy_weights,
        options=dict(entry.options),
    )
    own_keys = None if keys is None else Keys(keys, node)
    with Transport(entry.address, own_keys, insecure=insecure) as transport:
        running = Worker(settings, transport)
        signals: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            signals.append(number)
            running.stop("received a signal")

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        if end_with_stdin:
            running.end_with(sys.stdin.fileno())
        running.run()
    if signals:
        raise typer.Exit(_SIGNALLED + signals[0])


def up(
    file: Annotated[Path, typer.Argument(metavar="INVENTORY", help="Inventory file.")],
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Start the workers on this Ray cluster."),
    ] = None,
    *,
    local: Annotated[
        bool,
        typer.Option("--local", help="Start the workers of this machine, and keep them running."),
    ] = False,
    insecure: InsecureOption = False,
) -> None:
    """Start workers and keep them running, here or with Ray; or print each machine's command."""
    from helixreal.inventory import load_inventory
    from helixsim.errors import InputError

    if local and ray is not None:
        raise InputError("give either --local or --ray")
    found = load_inventory(file)
    if local:
        _run_own_workers(found, file, insecure=insecure)
        return
    if ray is None:
        for name, entry in found.nodes.items():
            host = entry.address.removeprefix("tcp://").rpartition(":")[0]
            command = ["helixreal", "worker", "--node", name, "--inventory", str(file)]
            typer.echo(f"# on {host}\n{shlex.join(command)}")
        return
    from helixreal.ray_launcher import start_workers

    start_workers(found, ray)


def _run_own_workers(inventory: Inventory, file: Path, *, insecure: bool) -> None:
    """Run the workers whose addresses are of this machine, until they are told to end."""
    from helixreal.local import LocalWorkers, is_own_address
    from helixsim.errors import InputError

    start_logging("up")
    own = {name: entry for name, entry in inventory.nodes.items() if is_own_address(entry.address)}
    if not own:
        raise InputError("no node has an address of this machine", file=file, where="nodes")
    more = [] if inventory.keys is None else ["--keys", str(inventory.keys)]
    if insecure:
        more.append("--insecure")

    def stop(number: int, frame: FrameType | None) -> None:
        raise typer.Exit(_SIGNALLED + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with LocalWorkers(own, inventory.coordinator, more) as workers:
        typer.echo(f"running {', '.join(own)}", err=True)
        workers.supervise()
        workers.wait()


def down(
    address: Annotated[
        str | None,
        typer.Argument(metavar="[HOST:PORT]", help="Address of a coordinator or a worker."),
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option("--inventory", metavar="FILE", help="Stop the cluster of this inventory."),
    ] = None,
    keys: KeysOption = None,
) -> None:
    """Stop a cluster: the coordinator and, through it, all workers."""
    from helixreal.inventory import load_inventory, tcp_address
    from helixreal.net import messages
    from helixreal.net.transport import Keys, Transport
    from helixsim.cluster import COORDINATOR
    from helixsim.errors import InputError

    if (address is None) == (inventory is None):
        raise InputError("give either an address or --inventory")
    targets = [(COORDINATOR, tcp_address((address or "").removeprefix("tcp://"), 7000))]
    if inventory is not None:
        found = load_inventory(inventory)
        keys = keys or found.keys
        targets = [(COORDINATOR, found.coordinator)]
        # Workers without a coordinator are stopped directly, if the inventory has their port.
        targets += [
            (name, entry.address)
            for name, entry in found.nodes.items()
            if not entry.address.endswith(":0")
        ]
    own_keys = None if keys is None else Keys(keys, COORDINATOR)
    with Transport("tcp://127.0.0.1:0", own_keys) as transport:
        for name, where in targets:
            transport.connect(name, where)
            transport.send(name, messages.Stop())
        transport.flush(timeout_s=3.0)


def keys(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NODE]...", help="Names of the nodes.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the keys.")
    ] = Path("keys"),
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", metavar="FILE", help="Make keys for all nodes of this inventory."
        ),
    ] = None,
) -> None:
    """Make keys for the coordinator and the nodes; existing keys stay unchanged."""
    from helixreal.inventory import load_inventory
    from helixreal.net.transport import make_keys
    from helixsim.cluster import COORDINATOR
    from helixsim.errors import InputError

    wanted = [*(names or [])]
    if inventory is not None:
        wanted += load_inventory(inventory).nodes
    if not wanted:
        raise InputError("name the nodes, or give --inventory")
    make_keys(output, [COORDINATOR, *wanted])
    typer.echo(
        f"keys in {output}: copy {output}/public to every machine, and each "
        f"{output}/secret/NODE.key_secret to that node's machine only"
    )
