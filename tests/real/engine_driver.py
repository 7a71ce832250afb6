"""Serves requests with engines in one process, as workers and a coordinator would."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from helixreal.engines.engine import GREEDY, Engine, EngineSpec, Row, Sampling, TokenScore
from helixsim.control.kv_cache import reserve

DEVICE = os.environ.get("HELIX_TEST_DEVICE", "cpu")
"""Device of the engines under test, for example ``cuda:0``."""

Hop = tuple[int, int, int]
"""Engine by its index, then the layers ``[start, end)`` that a request runs there."""


@dataclass
class Job:
    """One request: when it comes, which way it goes, and what has come of it."""

    prompt: list[int]
    num_output: int
    arrival: int = 0
    route: Sequence[Hop] = ()
    sampling: Sampling = GREEDY
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    position: int = 0

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.tokens

    def take_scores(self, row: Row) -> None:
        if row.scores is not None:
            self.prompt_scores += row.scores.prompt
            self.scores += [row.scores.token] if row.scores.token is not None else []

    @property
    def is_done(self) -> bool:
        return len(self.tokens) == self.num_output


def prompts(lengths: Sequence[int], seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 256) for _ in range(length)] for length in lengths]


def make_specs(model, layers, num_layers=8, *, entries=(), **settings) -> list[EngineSpec]:
    """One spec for each ``(start, end)`` of `layers`; entered at `entries` as well."""
    settings = {"device": DEVICE, "kv_memory_bytes": 8 << 20, "max_context_tokens": 256} | settings
    return [
        EngineSpec(
            start_layer=start,
            end_layer=end,
            num_layers=num_layers,
            entry_layers=(start, *(entry for entry in entries if start < entry < end)),
            model=str(model),
            **settings,
        )
        for start, end in layers
    ]


def serve(
    engines: Sequence[Engine],
    jobs: Sequence[Job],
    *,
    chunk: int = 10**6,
    watch: Callable[[list[Row]], None] = lambda rows: None,
) -> list[list[int]]:
    """Step all jobs that have come, and are not done, in one continuous batch.

    At a hop, requests that enter the same engine at the same layers go through it together.
    Hidden states travel packed. Prompts go `chunk` tokens at a time.
    """
    for step in range(10_000):
        if all(job.is_done for job in jobs):
            return [job.tokens for job in jobs]
        running = [key for key, job in enumerate(jobs) if job.arrival <= step and not job.is_done]
        rows = {key: _row(key, jobs[key], chunk) for key in running}
        watch(list(rows.values()))
        for hop in range(max((len(jobs[key].route) for key in running), default=0)):
            _run_hop(engines, jobs, rows, hop)
        for key, row in rows.items():
            jobs[key].position += row.num_tokens
            jobs[key].take_scores(row)
            if row.wants_token:
                jobs[key].tokens.append(row.payload)
            if jobs[key].is_done:
                for engine in engines:
                    engine.kv.release(key)
    raise AssertionError("the jobs do not end")


def _row(key: int, job: Job, chunk: int) -> Row:
    ids = job.ids[job.position : job.position + chunk]
    is_last = job.position + len(ids) == len(job.ids)
    sampling = structs.replace(job.sampling, prompt_tokens=len(job.prompt))
    return Row(
        key,
        job.position,
        len(ids),
        ids,
        wants_token=is_last,
        sampling=sampling,
        context=job.ids,
    )


def _run_hop(
    engines: Sequence[Engine], jobs: Sequence[Job], rows: dict[int, Row], hop: int
) -> None:
    groups: dict[Hop, list[int]] = {}
    for key in rows:
        if hop < len(jobs[key].route):
            groups.setdefault(jobs[key].route[hop], []).append(key)
    for (index, start, end), keys in groups.items():
        engine = engines[index]
        batch = [rows[key] for key in keys]
        for row in batch:
            assert reserve(engine.kv, row.request, row.position + row.num_tokens)
        if start > 0:
            sent = [bytes(part) for part in engine.pack([row.payload for row in batch])]
            received = engine.unpack(sent, [row.num_tokens for row in batch])
            for row, payload in zip(batch, received, strict=True):
                row.payload = payload
        for row, payload in zip(batch, engine.run(batch, start, end), strict=True):
            row.payload = payload
