"""Prose in plain technical English: words and phrases to avoid, and what to say instead.

The check covers the pages of the documentation, the text cells of the notebooks, the shipped
scenarios and profiles, and the docstrings, comments and messages of the packages. Blocks of code
and names in backticks are left out.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

INSTEAD = {
    # People and things without a name
    "who": "name the object: the request, the node, the client; or use a noun: 'the users of'",
    "whoever": "name the object: the caller, the process, the request",
    "whom": "name the object",
    "those": "repeat the noun: 'the requests that', 'the nodes of'",
    "somebody|someone": "name the object: a request, a client, a process",
    "nobody|no one": "'no request', 'no process', 'no caller'",
    "everybody|everyone": "'all requests', 'all nodes', 'all workers'",
    "anybody|anyone": "'any request', 'any process'",
    "strangers?": "'other requests', 'unknown processes'",
    # Images in place of the field's terms
    "home(?! page| directory)": "the coordinator; for a module: where it is defined",
    "brains?": "control plane",
    "feeders?": "load generator",
    "feeding|fed": "load generation; 'sent', 'passed to'",
    "passengers?": "message, request",
    "agenda": "pending arrivals",
    "rosters?": "membership",
    "convoys?": "head-of-line blocking; a group of decodes",
    "workshops?": "trial pool",
    "litters?": "neighbour batch",
    "stations?": "node executor",
    "guests?": "sequence, request",
    "farewell": "shutdown message",
    "under way": "in flight, running, in progress",
    "on (?:its|their) way": "in flight",
    "until then": "'so far', or name the time",
    # Sentences that readers stumbled over
    "that serves": "name the figure: throughput in tokens per second",
    "what came of": "'results'",
    "hold(?:s|ing)? it down": "'bottleneck', 'limits'",
    "done without": "'the run continues without', 'the node is removed from routing'",
    "says? the same as another": "'replaces alternative keys'",
    "so many more": "'the number of additional ...'",
    "so many": "'this number of', 'at most N'",
    "as demanded": "name the demand: 'the limit in ...'",
    "if that, times": "write the formula",
    "may be go in chunks": "'are prefilled in chunks'",
    "(?:it|this|that) is spared": "'this time is not added', 'is subtracted'",
    "the front are the": "'the Pareto front contains'",
    "no other beats": "'to which no other is superior'",
    "best until": "'the best so far'",
    "make up a cluster|makes up a cluster": "'generates a cluster'",
    "(?:is|are|be) billed": "'is added to', 'counts towards'",
    "is forgotten": "'its request is aborted', 'is removed'",
    "forget everybody": "'drop all requests'",
    "has arrived queue up|everybody queue": "'move arrived requests to the queue'",
    "told who": "'receives the requests that'",
    "kept up": "'finished', 'share of arrivals that finished'",
    "turned away": "'rejected'",
    "begun again|begins? again": "'restarted'",
    "worked out anew|found anew": "'solved again'",
    "at hand": "'available'",
}
"""Pattern of whole words -> what to say instead."""

EXACTLY = {"kV": "KV"}
"""The same, where upper and lower case matter."""

PATTERNS = [
    (re.compile(rf"(?<![\w-])(?:{words})(?![\w-])".replace(" ", r"\s+"), flags), instead)
    for table, flags in ((INSTEAD, re.IGNORECASE), (EXACTLY, 0))
    for words, instead in table.items()
]
NOT_PROSE = re.compile(r"^ *```.*?^ *```|``[^`]+``|`[^`]+`|<!--.*?-->|https?://\S+", re.S | re.M)


def findings(text: str, line: int = 1) -> list[tuple[int, str, str]]:
    """(line, what stands there, what to say instead) of a text that begins in a line."""
    prose = NOT_PROSE.sub(lambda code: "`" + "\n" * code[0].count("\n"), text)
    return [
        (line + prose.count("\n", 0, found.start()), " ".join(found[0].split()), instead)
        for pattern, instead in PATTERNS
        for found in pattern.finditer(prose)
    ]


def prose_of_python(source: str):
    """(first line, text) of each comment, docstring and message.

    Adjacent comment lines are one text, and so are the parts of a message; strings without a
    space are data.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    before, comment = 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if comment and line != before + 1:
            yield before - len(comment) + 1, "\n".join(comment)
            comment = []
        comment.append(token.string.lstrip("#"))
        before = line
    if comment:
        yield before - len(comment) + 1, "\n".join(comment)


def prose_of_notebook(source: str):
    """(first line in the file, text) of each line of the text cells."""
    lines = source.splitlines()
    for cell in json.loads(source)["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            first = json.dumps(cell["source"][0], ensure_ascii=False) if cell["source"] else ""
            yield next((i for i, at in enumerate(lines, 1) if first and first in at), 1), text


def prose_of(path: Path):
    source = path.read_text("utf-8")
    if path.suffix == ".py":
        return prose_of_python(source)
    return prose_of_notebook(source) if path.suffix == ".ipynb" else [(1, source)]


def complaints(path: Path) -> list[str]:
    """The words to avoid in a file, each as one line."""
    return [
        f"{path.relative_to(ROOT)}:{line}: '{found}': {instead}"
        for first, text in prose_of(path)
        for line, found, instead in findings(text, first)
    ]


def files() -> list[Path]:
    return [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "notebooks").glob("*.ipynb")),
        *sorted((ROOT / "scenarios").rglob("*.yaml")),
        *sorted((ROOT / "helixsim").rglob("*.yaml")),
        *sorted((ROOT / "helixsim").rglob("*.py")),
        *sorted((ROOT / "helixreal").rglob("*.py")),
    ]


def test_prose_uses_plain_technical_english():
    found = [complaint for path in files() for complaint in complaints(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The node that holds the layer.", []),
        ("Whoever waits.", [(1, "Whoever")]),
        ("A request,\nfor those that wait", [(2, "those")]),
        ("the best\nuntil then", [(1, "best until"), (2, "until then")]),
        ("the function `who` and ``those``", []),
        ("```text\nwho\n```\nwhom", [(4, "whom")]),
        ("its home page, its home", [(1, "home")]),
        ("[kV cache](#kv-cache)", [(1, "kV")]),
        ("a whole KV cache", []),
    ],
)
def test_findings(text, found):
    assert sorted((line, words) for line, words, _ in findings(text)) == sorted(found)


def test_prose_of_python():
    source = '"""Who."""\n\nX = "who"  # whom\n# ever\nY = f"they {X} are those"\n'
    assert sorted(prose_of_python(source)) == [(3, " whom\n ever"), (5, " are those"), (5, "they ")]
    assert ast.get_docstring(ast.parse(source)) == "Who."
