"""Launches a cluster from a scenario and its machines, for the commands that need one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from helixreal.coordinator.attempts import blank_prompts, drawn_prompts
from helixreal.coordinator.deadlines import TimeLimits
from helixreal.coordinator.membership import MembershipSettings
from helixreal.coordinator.server import Cluster, ClusterSettings
from helixreal.engines.model_config import ModelFacts, model_facts
from helixreal.inventory import Inventory, NodeEntry, load_inventory
from helixreal.local import LocalWorkers
from helixreal.net.transport import Keys, Transport
from helixsim.cluster import COORDINATOR
from helixsim.control.load import LoadGenerator
from helixsim.errors import InputError, ScenarioError
from helixsim.scenario.load import load_scenario
from helixsim.scenario.resolved import Scenario

logger = logging.getLogger(__name__)

_UNBOUND_CONTEXT = 1_000_000
_EMULATED_CONTEXT = 8192


@dataclass
class Launch:
    """A scenario, and the machines on which it runs.

    Attributes
    ----------
    scenario
        The scenario.
    inventory
        The machines.
    is_local
        Whether this process starts the workers, on this machine.
    time_scale
        Seconds of the run per second by the clock.
    insecure
        Whether addresses beyond loopback are allowed without keys.
    facts
        Sizes of the model; None for emulated engines.
    membership
        Intervals and time limits of heartbeats.
    limits
        Time limits of passes and requests.
    is_supervised
        Whether workers on this machine are started again when they end with a fault.
    """

    scenario: Scenario
    inventory: Inventory
    is_local: bool
    time_scale: float = 1.0
    insecure: bool = False
    facts: ModelFacts | None = None
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    limits: TimeLimits = field(default_factory=TimeLimits)
    is_supervised: bool = True
    workers: LocalWorkers | None = field(default=None, init=False)

    @classmethod
    def local(
        cls,
        file: str,
        overrides: Sequence[str] | None,
        seed: int | None,
        entry: NodeEntry,
        time_scale: float = 1.0,
    ) -> Launch:
        """Launch a process on this machine for every node that holds layers."""
        if time_scale != 1 and entry.engine != "emulated":
            raise InputError(
                "only emulated engines support a time scale other than 1", where="--time-scale"
            )
        scenario = _scenario(file, overrides, seed)
        assert scenario.placement is not None
        inventory = Inventory(
            coordinator="tcp://127.0.0.1:0",
            keys=None,
            nodes=dict.fromkeys(scenario.placement.layers, entry),
        )
        facts = _facts(scenario, inventory)
        return cls(scenario, inventory, is_local=True, time_scale=time_scale, facts=facts)

    @classmethod
    def on(
        cls,
        inventory_file: Path,
        file: str,
        overrides: Sequence[str] | None,
        seed: int | None,
        *,
        insecure: bool,
    ) -> Launch:
        """Launch on the machines of an inventory file, on which workers are started separately."""
        scenario = _scenario(file, overrides, seed)
        inventory = load_inventory(inventory_file)
        assert scenario.placement is not None
        for name in scenario.placement.layers:
            inventory.node(name, inventory_file)
        engines = {inventory.nodes[name].engine for name in scenario.placement.layers}
        if len(engines) > 1 and "emulated" in engines:
            raise ScenarioError(
                "emulated engines make no real tokens: use them on all nodes, or on none",
                file=inventory_file,
                where="nodes",
            )
        facts = _facts(scenario, inventory)
        return cls(scenario, inventory, is_local=False, insecure=insecure, facts=facts)

    @property
    def max_context_tokens(self) -> int:
        """Limit of the tokens of a request."""
        return _UNBOUND_CONTEXT if self.facts is None else self.facts.max_context_tokens

    def served_context_tokens(self, asked: int | None = None) -> int:
        """Limit of the tokens of a client's request, as asked for or by default.

        Emulated engines have no limit; their default is that of many models.
        """
        if asked is not None:
            return min(asked, self.max_context_tokens)
        return _EMULATED_CONTEXT if self.is_emulated else self.max_context_tokens

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids of the model; None for emulated engines, which take any."""
        return None if self.facts is None else self.facts.vocabulary

    @property
    def is_emulated(self) -> bool:
        """Whether engines are emulated."""
        return self.facts is None

    @contextmanager
    def cluster(
        self, load_generator: LoadGenerator | None = None, *, keeps_run: bool = True
    ) -> Iterator[Cluster]:
        """Start the coordinator and, for a local launch, the workers; both end with the context.

        Ctrl-C and SIGTERM end the run between two messages.
        """
        facts, keys = self.facts, self.inventory.keys
        settings = ClusterSettings(
            is_emulated=facts is None,
            time_scale=self.time_scale,
            prompts=blank_prompts
            if facts is None
            else drawn_prompts(self.scenario.run.seed, facts.vocabulary),
            max_context_tokens=self.max_context_tokens,
            keeps_run=keeps_run,
            membership=self.membership,
            limits=self.limits,
        )
        own_keys = None if keys is None else Keys(keys, COORDINATOR)
        with Transport(self.inventory.coordinator, own_keys, insecure=self.insecure) as transport:
            cluster = Cluster(self.scenario, transport, settings, load_generator=load_generator)
            with _stopped_by_signals(cluster):
                if not self.is_local:
                    try:
                        yield cluster
                    finally:
                        cluster.close()
                    return
                logger.info(
                    "the coordinator listens at %s", transport.address.removeprefix("tcp://")
                )
                with LocalWorkers(self.inventory.nodes, transport.address) as workers:
                    self.workers = workers
                    try:
                        yield cluster
                    finally:
                        cluster.close()

    def start(self, cluster: Cluster, progress: Callable[[str], None] | None = None) -> None:
        """Wait for all workers, then begin the run, unless it has been stopped."""
        before: list[str] = []

        def on_wait(missing: list[str]) -> None:
            if self.workers is not None:
                self.workers.check(missing)
            if progress is not None and missing != before:
                before[:] = missing
                progress(f"waiting for {', '.join(missing)}")

        cluster.wait_for_workers(on_wait)
        if not cluster.stopping:
            cluster.begin()
            if self.workers is not None and self.is_supervised:
                self.workers.supervise()


def _scenario(file: str, overrides: Sequence[str] | None, seed: int | None) -> Scenario:
    scenario = load_scenario(
        file, [*(overrides or []), *([] if seed is None else [f"run.seed={seed}"])]
    )
    if scenario.placement is None:
        raise ScenarioError(
            "a run needs a placement: add one here, or the name of a file with one",
            where="placement",
        )
    return scenario


def _facts(scenario: Scenario, inventory: Inventory) -> ModelFacts | None:
    """The sizes of the model that the coordinator needs; None for emulated engines."""
    entries = list(inventory.nodes.values())
    if entries[0].engine == "emulated":
        return None
    folders = [entry.model for entry in entries if entry.model is not None]
    if not folders:
        raise InputError("this engine needs a model: give its folder", where="--model")
    return model_facts(Path(folders[0]), scenario.llm)


@contextmanager
def _stopped_by_signals(cluster: Cluster) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        cluster.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
