"""Runs the passes of a step, and finds the requests for which the engine fails.

If a batch fails, it is run again in halves, and these in halves, until the requests that make it
fail are alone. A repetition is harmless: a pass writes only the KV slots of its own tokens, and
payloads change only when the engine has returned.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from helixreal.engines.engine import Engine, Payload, Row, RowFailure
from helixreal.engines.failures import ends_engine, reason_of
from helixsim.control.prefix_cache import PrefixCache
from helixsim.requests import Request

MAX_RERUNS = 48
"""Limit of the batches that are run again in one step: enough for three requests out of 256."""


@dataclass(frozen=True, slots=True)
class PassRows:
    """The rows of one pass of a step.

    Attributes
    ----------
    rows
        Request -> its row; after the pass, the row's payload is the result.
    segments
        (start layer, end layer, rows), in order of layers: requests that enter at a later layer
        join at that segment.
    """

    rows: dict[Request, Row]
    segments: list[tuple[int, int, list[Row]]]


@dataclass(slots=True)
class Outcome:
    """Result of a pass.

    Attributes
    ----------
    failures
        Key of a row's request -> why the engine cannot run it.
    stale
        Requests that have taken over KV blocks which a failed request should have filled: they
        can be restarted.
    fatal
        The error that ended the engine, if one did; then nothing else is known.
    """

    failures: dict[Hashable, str] = field(default_factory=dict)
    stale: set[Hashable] = field(default_factory=set)
    fatal: Exception | None = None


class StepRun:
    """One step on an engine.

    Parameters
    ----------
    engine
        The engine.
    max_reruns
        Limit of the batches that are run again; beyond it, all requests fail whose batch fails.
    """

    def __init__(self, engine: Engine, max_reruns: int = MAX_RERUNS) -> None:
        self._engine = engine
        self._reruns_left = max_reruns
        self._out: set[Hashable] = set()
        self._lost_blocks: set[int] = set()

    def run(self, each: PassRows) -> Outcome:
        """Run the next pass of the step, one segment after another.

        Rows of requests that have failed, here or in an earlier pass, are left out.
        """
        outcome = Outcome()
        try:
            for start_layer, end_layer, rows in each.segments:
                self._run(rows, start_layer, end_layer, outcome)
        except Exception as error:
            return Outcome(fatal=error)
        self._find_stale(each, outcome)
        return outcome

    def _run(self, rows: Sequence[Row], start_layer: int, end_layer: int, outcome: Outcome) -> None:
        """Run layers on rows; only errors that end the engine are raised."""
        rows = [row for row in rows if row.request not in self._out]
        if not rows:
            return
        try:
            payloads = self._computed(rows, start_layer, end_layer)
        except Exception as error:
            if ends_engine(error):
                raise
            self._run_in_halves(rows, start_layer, end_layer, error, outcome)
            return
        for row, payload in zip(rows, payloads, strict=True):
            if isinstance(payload, RowFailure):
                self._fail([row], payload.reason, outcome)
            else:
                row.payload = payload

    def _computed(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        payloads = self._engine.run(rows, start_layer, end_layer)
        if len(payloads) != len(rows):
            raise ValueError(f"the engine returned {len(payloads)} results for {len(rows)} rows")
        return payloads

    def _run_in_halves(
        self,
        rows: Sequence[Row],
        start_layer: int,
        end_layer: int,
        error: Exception,
        outcome: Outcome,
    ) -> None:
        """Run a batch that has failed again in two parts; one request alone fails."""
        requests = list(dict.fromkeys(row.request for row in rows))
        if len(requests) == 1 or self._reruns_left < 2:
            self._fail(rows, reason_of(error), outcome)
            return
        self._reruns_left -= 2
        first = set(requests[: len(requests) // 2])
        # In order: a row may read KV blocks that one before it writes.
        for is_first in (True, False):
            part = [row for row in rows if (row.request in first) == is_first]
            self._run(part, start_layer, end_layer, outcome)

    def _fail(self, rows: Sequence[Row], reason: str, outcome: Outcome) -> None:
        for row in rows:
            outcome.failures.setdefault(row.request, reason)
            self._out.add(row.request)
            self._lost_blocks.update(self._written(row))

    def _written(self, row: Row) -> list[int]:
        """The KV blocks that a row fills, and the blocks after them, where blocks can be shared."""
        kv = self._engine.kv
        if not isinstance(kv, PrefixCache):
            return []
        return kv.table(row.request)[row.position // kv.block_tokens :]

    def _find_stale(self, each: PassRows, outcome: Outcome) -> None:
        """Find the requests that build upon KV blocks of failed requests, in order of rows."""
        kv = self._engine.kv
        if not self._lost_blocks or not isinstance(kv, PrefixCache):
            return
        for row in each.rows.values():
            if row.request in self._out or self._lost_blocks.isdisjoint(kv.table(row.request)):
                continue
            outcome.stale.add(row.request)
            self._out.add(row.request)
            self._lost_blocks.update(self._written(row))
