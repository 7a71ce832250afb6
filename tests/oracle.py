"""The paper's physics once more, slowly: one heap, one event per hop and per layer.

Written from the description of the published simulator, with none of the shortcuts of the
package: no segments, no transfers, no look-ahead, no lazy coordinator, no shared routes. Only the
numbers come from outside: the topology, the flow over its links, latency profiles.

At one instant, requests that come go first, in order of (sent, started, number of the sending);
new requests before passes that come back; then layers that end, in order of their start; then
idle nodes look whether a request is there.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from random import Random

from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.scenario.resolved import Scenario

Log = list[tuple[int, int, float, float]]

NEW, ARRIVAL, LAYER_END, LOOK = range(4)


class Query:
    """A request: its lengths, the pass it is in, its route as a list of links."""

    def __init__(self, number: int, prompt: int, output: int) -> None:
        self.number = number
        self.prompt = prompt
        self.output = output
        self.iteration = 0
        self.left_at = 0.0
        self.route: list[PlacedLink] = []

    @property
    def tokens(self) -> int:
        return 1 if self.iteration else self.prompt

    @property
    def context(self) -> int:
        return self.prompt + self.iteration - 1 if self.iteration else 0


class Machine:
    """A node: a queue for every layer, and the batch that runs."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.queues: list[list[Query]] = [[] for _ in range(start, end)]
        self.layer = end - start - 1
        self.running: list[Query] | None = None
        self.received = 0


class Oracle:
    """One max-flow run of a scenario; :meth:`run` gives its log."""

    def __init__(self, scenario: Scenario, topology: Topology, flow: Flow, start_s: float) -> None:
        self.scenario, self.topology = scenario, topology
        self.flow = flow.link_tokens_per_s
        self.home = topology.coordinator
        self.start_s, self.end_s = start_s, start_s + scenario.run.duration_s
        self.rng = Random(scenario.run.seed)
        self.events: list[tuple] = []
        self.sequence = 0
        self.machines = [Machine(node.start_layer, node.end_layer) for node in topology.nodes]
        self.free = [0.0] * len(topology.links)
        self.load = [0.0] * len(topology.links)
        self.expected = [0] * len(topology.nodes)
        self.bandwidth = [self._bandwidth(link) for link in topology.links]
        self.num_created = self.num_rejected = 0
        self.log: Log = []

    def push(self, at: float, kind: int, order: tuple, what: object) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (at, kind, order, self.sequence, what))

    def run(self) -> Log:
        workload = self.scenario.workload
        if workload.mode == "offline":
            for number in range(workload.initial_requests):
                self.create(self.start_s + workload.spacing_s * number, 0.0)
        else:
            for request in workload.trace.requests:
                self.create(self.start_s + request.arrival_s, 0.0, request)
        handlers = [self.admit, self.arrived, self.layer_ended, self.look]
        while self.events:
            at, kind, _, _, what = heapq.heappop(self.events)
            if at > self.end_s and not self.scenario.run.drain:
                break
            handlers[kind](what, at)
        return self.log

    # -- the coordinator

    def create(self, at: float, now: float, given=None) -> None:
        lengths = (
            (given.prompt_tokens, given.output_tokens)
            if given
            else self.scenario.workload.lengths.sample(self.rng)
        )
        if at <= self.end_s:
            self.push(at, NEW, (now,), Query(self.num_created, *lengths))
            self.num_created += 1

    def feed(self, now: float) -> None:
        workload = self.scenario.workload
        at = now + workload.spacing_s
        if workload.mode == "online" or at > self.end_s:
            return
        if self.fullest_layer() <= self.scenario.scheduler.feed_high_water_mark:
            self.create(at, now)

    def admit(self, query: Query, now: float) -> None:
        route = self.find_route(query)
        if route is None:
            self.num_rejected += 1
            return
        query.route = route
        self.book(query, 1)
        self.leave(query, now)

    def leave(self, query: Query, now: float) -> None:
        query.left_at = now
        self.send(query, self.home, now)

    def came_back(self, query: Query, now: float) -> None:
        self.log.append((query.number, query.iteration, query.left_at, now))
        if query.iteration == query.output:  # one decode more than the answer needs
            self.book(query, -1)
            self.feed(now)
            return
        query.iteration += 1
        for link in query.route:
            self.load[link.index] += 1 / self.flow[link.index]
        self.leave(query, now)
        if query.iteration == 1:
            self.feed(now)

    # -- max-flow scheduling

    def _bandwidth(self, link: PlacedLink) -> int:
        topology, flow = self.topology, self.flow
        if flow[link.index] <= 0:
            return 0
        out = sum(flow[other.index] for other in topology.outgoing[link.source])
        into = sum(flow[other.index] for other in topology.incoming[link.target])
        sender, receiver = topology.nic(link.source), topology.nic(link.target)
        return int(
            min(
                link.bandwidth_bytes_per_s,
                sender.outbound_bytes_per_s * (flow[link.index] / out),
                receiver.inbound_bytes_per_s * (flow[link.index] / into),
            )
        )

    def expected_tokens(self, query: Query) -> int:
        settings, workload = self.scenario.scheduler, self.scenario.workload
        return int(query.prompt + workload.mean_output_tokens * settings.kv.expected_output_ratio)

    def book(self, query: Query, sign: int) -> None:
        for link in query.route[:-1]:
            layers = self.topology.nodes[link.target].end_layer - link.entry_layer
            self.expected[link.target] += sign * self.expected_tokens(query) * layers

    def fullest_layer(self) -> float:
        shares = []
        for layer in range(self.topology.llm.num_layers):
            holders = [n for n in self.topology.nodes if n.start_layer <= layer < n.end_layer]
            used = sum(Fraction(self.expected[n.index], n.num_layers) for n in holders)
            room = sum(Fraction(n.capacity.kv_token_layers, n.num_layers) for n in holders)
            shares.append(used / room)
        return float(max(shares))

    def find_route(self, query: Query) -> list[PlacedLink] | None:
        settings, prompt = self.scenario.scheduler, query.prompt
        route: list[PlacedLink] = []
        at = self.home
        while not route or at != self.home:
            outgoing = self.topology.outgoing[at]
            total = sum(self.flow[link.index] for link in outgoing)
            best = None
            for link in outgoing:
                flow = self.flow[link.index]
                if flow <= 0 or flow < settings.min_flow_share * total:
                    continue
                if link.target != self.home:
                    node = self.topology.nodes[link.target]
                    asked = self.expected_tokens(query) * node.num_layers
                    limit = settings.kv.high_water_mark * node.capacity.kv_token_layers
                    if prompt > node.capacity.max_prompt_tokens:
                        continue
                    if self.expected[link.target] + asked > limit:
                        continue
                after = self.load[link.index] + prompt / flow
                if best is None or after < best[0]:
                    best = after, link
            if best is None:
                for link in route:
                    self.load[link.index] -= prompt / self.flow[link.index]
                return None
            self.load[best[1].index] = best[0]
            route.append(best[1])
            at = best[1].target
        return route

    # -- links

    def send(self, query: Query, source: int, now: float) -> None:
        link = next(link for link in query.route if link.source == source)
        nbytes = query.tokens * link.bytes_per_token
        started = max(self.free[link.index], now)
        sent = started + (link.latency_s + nbytes / self.bandwidth[link.index]) - link.latency_s
        self.free[link.index] = sent
        self.push(sent + link.latency_s, ARRIVAL, (sent, started), (query, link))

    def arrived(self, what: tuple[Query, PlacedLink], now: float) -> None:
        query, link = what
        if link.target == self.home:
            self.came_back(query, now)
            return
        machine = self.machines[link.target]
        machine.queues[link.entry_layer - machine.start].append(query)
        machine.received += query.tokens
        self.push(now, LOOK, (), link.target)

    # -- nodes

    def look(self, number: int, now: float) -> None:
        if self.machines[number].running is None:
            self.start_next(number, now)

    def layer_ended(self, number: int, now: float) -> None:
        machine = self.machines[number]
        batch = machine.running
        machine.running = None
        if machine.layer + 1 < len(machine.queues):
            machine.queues[machine.layer + 1] += batch
        else:
            for query in batch:
                self.send(query, number, now)
        self.start_next(number, now)

    def start_next(self, number: int, now: float) -> None:
        machine = self.machines[number]
        count = len(machine.queues)
        for step in range(1, count + 1):
            layer = (machine.layer + step) % count
            if machine.queues[layer]:
                machine.layer = layer
                machine.running, machine.queues[layer] = self.select(number, machine.queues[layer])
                seconds = self.layer_time(number, machine)
                self.push(now + seconds, LAYER_END, (now,), number)
                return

    def select(self, number: int, queue: list[Query]) -> tuple[list[Query], list[Query]]:
        room = self.topology.nodes[number].capacity
        taken: list[Query] = []
        left: list[Query] = []
        for query in queue:
            group = [other for other in taken if bool(other.iteration) == bool(query.iteration)]
            if query.iteration:
                context = sum(other.context for other in group) + query.context
                fits = len(group) < room.max_decode_tokens and context <= room.max_decode_context
            else:
                tokens = sum(other.prompt for other in group) + query.prompt
                fits = len(group) < room.max_prompts and tokens <= room.max_prompt_tokens
            (taken if fits else left).append(query)
        return taken, left

    def layer_time(self, number: int, machine: Machine) -> float:
        profile = self.topology.nodes[number].profile
        prompts = sum(query.prompt for query in machine.running if not query.iteration)
        decodes = sum(1 for query in machine.running if query.iteration)
        seconds = profile.prefill(prompts) + profile.decode(decodes) * (2 if decodes == 1 else 1)
        if machine.layer == 0 and machine.received:
            nbytes = machine.received * self.topology.llm.activation_bytes_per_token
            machine.received = 0
            seconds = seconds + nbytes / 4e9 + nbytes / 5e9
        return seconds
