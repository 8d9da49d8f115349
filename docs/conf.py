"""Configuration of the book for Sphinx: MyST reads the Markdown, Furo draws it, MathJax sets the formulas.

Nothing is fetched from the network, neither while building nor while reading.

Run `python docs/book.py --build`, which also checks the pages.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = {".png", ".gif", ".svg"}

project = "minisimclr"
html_title = "minisimclr, the book"
copyright = "the authors of minisimclr"
language = "en"
extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["README.md", "_build"]  # README.md is the first page on a code host; index.md is it here
nitpicky = True

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4  # levels of headings that links may name, as on a code host
myst_dmath_double_inline = True

# MathJax's SVG output needs no fonts, so that a page opened from a folder looks as one from a server.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global", "scale": 0.95}, "options": {"enableMenu": False}}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#5ec9a0", "color-brand-content": "#5ec9a0"},
    "navigation_with_keys": True,
}
copybutton_selector = "div.highlight-python pre, div.highlight-sh pre"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# ── Source files that the pages link to become pages, with colours ────────────────────────────────

LINKED = "code_pages"  # the environment's set of files, relative to the repository


class LinksToCode(SphinxTransform):
    """Turn links to files of the repository into links to pages that show them.

    MyST would offer source files as downloads, and does not know Markdown outside of docs/.
    """

    default_priority = 400

    def apply(self, **settings: Any) -> None:
        here = Path(self.env.doc2path(self.env.docname)).parent
        for link in [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]:
            page = isinstance(link, addnodes.pending_xref)
            if page and link.get("refdomain") != "doc":
                continue
            path = Path(os.path.normpath(here / (link["reftarget"] + ".md" * page)))
            inside = path.is_relative_to(HERE) and page
            if inside or not path.is_relative_to(ROOT) or not path.is_file() or path.suffix in PICTURES:
                continue
            file = path.relative_to(ROOT).as_posix()
            linked(self.env).setdefault(self.env.docname, set()).add(file)
            up = "../" * self.env.docname.count("/")
            shown = [nodes.Text(link.astext())] if page else link.children
            link.replace_self(nodes.reference("", "", *shown, refuri=f"{up}code/{file}.html", internal=True))


class WholeFormulas(SphinxTransform):
    """Hand formulas to MathJax as they are: Sphinx would put one of several rows into `split`, which takes no tag."""

    default_priority = 400

    def apply(self, **settings: Any) -> None:
        for formula in self.document.findall(nodes.math_block):
            formula["no-wrap"] = formula["nowrap"] = True  # its name of today, and the one before
            formula[:] = [nodes.Text(rf"\[{formula.astext()}\]")]


def linked(env: Any) -> dict[str, set[str]]:
    """The files that each page links to."""
    if not hasattr(env, LINKED):
        setattr(env, LINKED, {})
    return getattr(env, LINKED)  # type: ignore[no-any-return]


def forget(app: Sphinx, env: Any, docname: str) -> None:
    linked(env).pop(docname, None)


def merge(app: Sphinx, env: Any, docnames: list[str], other: Any) -> None:
    linked(env).update({name: files for name, files in linked(other).items() if name in docnames})


def code_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that some page links to."""
    for file in sorted(set().union(*linked(app.env).values())):
        text = (ROOT / file).read_text()
        try:
            lexer = get_lexer_for_filename(file)
        except ClassNotFound:
            lexer = TextLexer()
        code = highlight(text, lexer, HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True))
        body = f'<h1><code>{html.escape(file)}</code></h1>\n<div class="highlight source">{code}</div>'
        yield f"code/{file}", {"title": file, "body": body, "parents": []}, "page.html"


def page_language(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Tell the browser the language of a translation, 00_….ko: it chooses fonts and breaks lines by it."""
    if (found := re.search(r"\.([a-z]{2})$", page)) and not page.startswith("code/"):
        context["language"] = found.group(1)


def ship_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy what the pages need of MathJax from its Python package into the built book."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if error is not None or app.builder.format != "html":
        return
    if package is None or package.origin is None:
        raise RuntimeError('the book needs MathJax: pip install ".[docs]"')
    folder = Path(package.origin).parent / "static" / "mathjax"
    for part in ("tex-svg.js", "input/tex/extensions", "a11y/assistive-mml.js"):
        there = Path(app.outdir) / "_static" / "mathjax" / part
        there.parent.mkdir(parents=True, exist_ok=True)
        if (folder / part).is_dir():
            shutil.copytree(folder / part, there, dirs_exist_ok=True)
        else:
            shutil.copyfile(folder / part, there)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(LinksToCode)
    app.add_transform(WholeFormulas)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", code_pages)
    app.connect("html-page-context", page_language)
    app.connect("build-finished", ship_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
