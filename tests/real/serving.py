"""Endpoints for tests: over a real cluster, or over a front end that says what it is told to."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from queue import Queue
from threading import Event

import httpx

from helixreal.serving import create_app, run_server


@contextmanager
def served(frontend, tokenizer=None, **settings):
    """The address of an endpoint over a front end."""
    urls, until = Queue(), Event()
    app = create_app(frontend, tokenizer, **settings)
    thread = threading.Thread(
        target=run_server,
        args=(app, "127.0.0.1", 0),
        kwargs={"ready": urls.put, "until": until},
    )
    thread.start()
    try:
        yield urls.get(timeout=30)
    finally:
        until.set()
        thread.join(30)
        assert not thread.is_alive()


class Scripted:
    """A front end that says what it is told to."""

    model_name = "scripted"
    max_context_tokens = 1000
    vocabulary = None
    is_ready = True

    def __init__(self, *happenings, vocabulary=None):
        self.happenings, self.vocabulary = happenings, vocabulary
        self.asked, self.cancelled = [], []

    def submit(self, generation, listener):
        self.asked.append(generation)
        for happening in self.happenings:
            listener(happening)
        return len(self.asked)

    def cancel(self, request):
        self.cancelled.append(request)


class InProcess:
    """Clients of an endpoint without a socket: every call runs the application itself."""

    def __init__(self, frontend, tokenizer=None, **settings):
        self.app = create_app(frontend, tokenizer, **settings)

    async def _send(self, method, path, **more):
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **more)

    def request(self, method, path, **more):
        import asyncio

        return asyncio.run(self._send(method, path, **more))

    def post(self, path, json=None, **more):
        return self.request("POST", path, json=json, **more)

    def get(self, path, **more):
        return self.request("GET", path, **more)


def error_of(answer):
    return answer.json()["error"]
