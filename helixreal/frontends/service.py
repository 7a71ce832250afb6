"""Serves the requests of front ends until the cluster is stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from shutil import rmtree
from typing import TYPE_CHECKING

from helixreal.coordinator.intake import Intake
from helixreal.coordinator.server import Cluster
from helixreal.frontends.door import Door
from helixreal.frontends.garbage import collect_rarely
from helixreal.frontends.supervisor import FrontEndProcesses, private_folder
from helixreal.net.transport import Keys

if TYPE_CHECKING:
    from helixreal.frontends.process import FrontEndSettings


@dataclass(frozen=True, kw_only=True)
class Service:
    """The front ends of a cluster.

    Attributes
    ----------
    bound
        The socket, bound, at which front ends of this machine speak HTTP; None without any.
    front_ends
        Makes the settings of front end number i, given the address of the coordinator's door.
    count
        Number of front ends of this machine.
    address
        ``tcp://host:port`` to which front ends elsewhere connect; None for none.
    keys, insecure
        For that address, as for :class:`~helixreal.net.transport.Transport`.
    """

    bound: socket.socket | None
    front_ends: Callable[[int, str], FrontEndSettings]
    count: int
    address: str | None = None
    keys: Keys | None = None
    insecure: bool = False

    def run(
        self,
        cluster: Cluster,
        intake: Intake,
        *,
        on_ready: Callable[[], None],
        on_open: Callable[[str], None],
    ) -> None:
        """Run the cluster's loop, and start and supervise the front ends, until it is stopped.

        Parameters
        ----------
        on_ready
            Called when all front ends of this machine accept connections.
        on_open
            Called with the address to which front ends elsewhere connect.

        Raises
        ------
        HelixError
            If a front end cannot be started.
        """
        folder = private_folder()
        local = f"ipc://{folder}/door"
        door = Door(intake, cluster.watch)
        processes = FrontEndProcesses(
            [self.front_ends(number, local) for number in range(self.count)],
            self.bound,
            folder,
            door.left,
        )

        def listens(name: str) -> None:
            if processes.listens(name):
                on_ready()

        door.on_listening = listens
        door.on_silent = processes.replace
        try:
            door.open_local(local)
            if self.address is not None:
                on_open(door.open(self.address, self.keys, insecure=self.insecure))
            processes.start()
            collect_rarely()
            while not cluster.stopping:
                cluster.poll_once()
                door.turn()
                processes.check()
        finally:
            door.close()
            processes.stop()
            rmtree(folder, ignore_errors=True)
