"""An OpenAI-compatible HTTP endpoint over a :class:`helixreal.serving.frontend.Frontend`.

``create_app(frontend, tokenizer)`` makes the application, ``run_server(app, host, port)`` serves
it until Ctrl-C. Without a tokenizer, prompts are token ids, and so are answers: their ``text`` is
the ids with spaces between them.
"""

from helixreal.serving.app import create_app
from helixreal.serving.server import run_server
from helixreal.serving.tokenizer import Tokenizer

__all__ = ["Tokenizer", "create_app", "run_server"]
