"""Hooks of mkdocs: pages of the repository's root in the site, and the public names of helixsim.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages. In all pages, relative links that lead
to these files, or from these files into docs/, are rewritten. A link to another file of the
repository becomes its text, because the site does not contain that file.
"""

from __future__ import annotations

import re
from inspect import isclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

import helixsim

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

ROOT_PAGES = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File in the root of the repository -> page of the site."""

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")
PUBLIC_NAMES = "<!-- public names -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links, and list the public names where the page asks for them."""
    del config
    sources = {target: source for source, target in ROOT_PAGES.items()}
    folder = PurePosixPath("." if page.file.src_uri in sources else "docs")

    def rewritten(link: re.Match[str]) -> str:
        path = _normal(folder / link["path"])
        target = ROOT_PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            return link["text"]
        return f"[{link['text']}]({target}{link['anchor'] or ''})"

    markdown = LINK.sub(rewritten, markdown)
    return markdown.replace(PUBLIC_NAMES, _public_names()) if PUBLIC_NAMES in markdown else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out the roles of reStructuredText that docstrings put before names."""
    del page, config, files
    return ROLE.sub("", html)


def _public_names() -> str:
    """Instructions to mkdocstrings: each public name, functions before classes, by its module."""
    public = [getattr(helixsim, name) for name in sorted(helixsim.__all__, key=str.lower)]
    public.sort(key=isclass)
    return "\n\n".join(f"::: {item.__module__}.{item.__qualname__}" for item in public)


def _normal(path: PurePosixPath) -> str:
    """A path without ``..``."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
