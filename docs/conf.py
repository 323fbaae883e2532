"""How `make docs` builds the site. The source folder is the repository, so that links between pages are the same on
the site and in the repository, and no page is there twice.
"""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from docutils import nodes
from rich.console import Console
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import deepcluster
from deepcluster.commands.cli import app as command
from deepcluster.commands.cli import recipes

project = "DeepCluster"
author = "The DeepCluster authors"
project_copyright = author
version = release = deepcluster.__version__

root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/**.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "docs/_build", "runs", "build", "deepcluster", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_use_ivar = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nitpicky = False  # signatures name types of torch and numpy, whose references are not here

html_theme = "furo"
html_title = "DeepCluster"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


class Commands(SphinxDirective):
    """A section for each command of the parser, with the help that it prints."""

    def run(self) -> list[nodes.Node]:
        lines = [line for name in _names() for line in (f"## {name}", "", "```text", *_help(name), "```", "")]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Options(SphinxDirective):
    """The list of all options, as `deepcluster recipes --options` prints it."""

    def run(self) -> list[nodes.Node]:
        printed = io.StringIO()
        with redirect_stdout(printed):
            recipes(options=True)
        return self.parse_text_to_nodes(f"```text\n{printed.getvalue()}```\n")


def _names() -> Iterator[str]:
    return (name for name in command if not name.startswith("-"))


def _help(name: str) -> list[str]:
    page = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)
    command.help_print([name], console=page)
    return [line.rstrip() for line in page.file.getvalue().strip().splitlines()]


def _front_page(app: Sphinx, error: Exception | None) -> None:
    """The site opens by its folder, though its first page is that of docs/."""
    if error is None and app.builder.name == "html":
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>\n'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    app.add_directive("options", Options)
    app.connect("build-finished", _front_page)
    return {"parallel_read_safe": True}
