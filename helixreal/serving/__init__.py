"""An OpenAI-compatible HTTP endpoint for a :class:`helixreal.serving.frontend.Frontend`.

``create_app(frontend, tokenizer)`` makes the application, ``run_server(app, host, port)`` runs it
until Ctrl-C. Without a tokenizer, prompts and answers are token ids: the ``text`` of an answer is
the ids, separated by spaces.
"""

from helixreal.serving.app import create_app
from helixreal.serving.server import run_server
from helixreal.serving.tokenizer import Tokenizer

__all__ = ["Tokenizer", "create_app", "run_server"]
