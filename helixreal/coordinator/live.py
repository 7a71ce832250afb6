"""A cluster in a thread of its own: other threads of the process submit requests to it.

For programs that use a cluster without a server. ``helixreal serve`` runs the cluster's loop in its
main thread, and front ends in processes of their own (:mod:`helixreal.frontends`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from helixreal.coordinator.intake import Intake, NoLoad
from helixreal.coordinator.server import Cluster
from helixreal.serving.frontend import (
    STOPPED,
    GenerationRequest,
    Listener,
    Load,
    Refused,
    StreamEvent,
    Token,
)

__all__ = ["LiveCluster", "NoLoad"]

logger = logging.getLogger(__name__)


class LiveCluster:
    """Runs a cluster in its own thread.

    Parameters
    ----------
    cluster
        A cluster that has begun, with :class:`NoLoad` as its load generator.
    model_name
        Name of the LLM.
    max_context_tokens
        Limit of the tokens of a prompt and its answer together; the KV caches may lower it.
    vocabulary
        Token ids are below this number; None for emulated engines, which do not read them.
    """

    def __init__(
        self,
        cluster: Cluster,
        model_name: str,
        max_context_tokens: int,
        vocabulary: int | None = None,
    ) -> None:
        self._cluster = cluster
        self._intake = Intake(cluster, model_name, max_context_tokens, vocabulary)
        self.model_name = model_name
        self.max_context_tokens = self._intake.max_context_tokens
        self.vocabulary = vocabulary
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._writable, False)
        self._numbers = iter(range(2**62))
        self._index_of: dict[int, int] = {}
        self._has_ended = Event()
        cluster.watch(self._readable, self._do_tasks)
        self._thread = Thread(target=self._run, name="cluster", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the cluster; requests that have not ended fail."""
        if not self._thread.is_alive():
            return
        self._cluster.stopping = True
        self._wake()
        self._thread.join()
        os.close(self._readable)
        os.close(self._writable)

    @property
    def has_ended(self) -> Event:
        """Set when the cluster has stopped, for any reason."""
        return self._has_ended

    def _run(self) -> None:
        try:
            while not self._cluster.stopping:
                self._cluster.poll_once()
        except Exception:
            logger.exception("the cluster has stopped")
        finally:
            self._cluster.stopping = True
            self._intake.fail_all(STOPPED)
            self._has_ended.set()

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._writable, b"x")

    def _do_tasks(self) -> None:
        os.read(self._readable, 4096)
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            task()

    # -- interface of front ends ---------------------------------------------------------------

    def submit(self, generation: GenerationRequest, listener: Listener) -> int:
        """Submit a request; the listener receives every token and exactly one final event."""
        number = next(self._numbers)
        if self._cluster.stopping:
            listener(Refused(STOPPED, 1.0, is_unavailable=True))
            return number
        self._tasks.put(lambda: self._take(number, generation, listener))
        self._wake()
        return number

    def _take(self, number: int, generation: GenerationRequest, listener: Listener) -> None:
        has_ended = False

        def on_event(event: StreamEvent) -> None:
            nonlocal has_ended
            if not isinstance(event, Token):
                has_ended = True
                self._index_of.pop(number, None)
            listener(event)

        index = self._intake.take(generation, on_event)
        if not has_ended:
            self._index_of[number] = index

    def cancel(self, request: int) -> None:
        """Cancel a request; its listener is not called any more."""

        def act() -> None:
            index = self._index_of.pop(request, None)
            if index is not None:
                self._intake.cancel(index)

        self._tasks.put(act)
        self._wake()

    def load(self) -> Load:
        """The load of the cluster now."""
        return self._intake.load()

    @property
    def is_ready(self) -> bool:
        """Whether a route covers all layers now."""
        return self._intake.is_ready
