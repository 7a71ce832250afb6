"""Sends what schemathesis makes of ``/openapi.json`` to an endpoint; run it with pytest.

It needs ``pip install schemathesis`` (26 MB, more than a test of every change is worth)::

    PYTHONPATH=.:tests/real python -m pytest -q tests/bench/endpoint_fuzz.py

It fails at a status of 500, at a status or a format that the document does not name, and at an
invalid request that is accepted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving import Scripted
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.serving import Tokenizer, create_app
from helixreal.serving.frontend import Finished, Load, Token

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = 100


class Answering(Scripted):
    """A front end that answers every request with two tokens."""

    max_context_tokens = 100_000

    def load(self):
        return Load(0, 0, 0.0, {}, 0, 0, 0, 0, 0)


def operations():
    """The operations of the document."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(write_tiny_tokenizer(Path(folder)))
    frontend = Answering(Token(72), Token(105), Finished("length"), vocabulary=256)
    app = create_app(frontend, tokenizer)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_endpoint(operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking takes minutes
    )
    def run(case):
        # No schema tells which models there are, or whether a prompt fits.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    try:
        run()
    except Unsatisfiable:
        pytest.skip("no request of this operation is invalid")
