"""What `mkdocs.yml` cannot say: pages from outside docs/, links that leave it, the API reference.

Loaded by mkdocs as a hook and by griffe as an extension; no part of the package.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "training/README.md": "training.md",
}
"""Pages of the site that are elsewhere in the repository."""

REFERENCE = {
    "Loading and asking": (
        "load LoadOptions Model Conversation Generation Answer Timings GenerationOptions"
    ),
    "Reading documents": (
        "read read_documents read_async read_documents_async PageResult DocumentResult "
        "ReadProgress PageView"
    ),
    "Extracting fields": "extract extract_async ExtractResult FieldValue",
    "Images and pages": "load_image load_pages open_pages Page Grid tile_grid",
    "Messages": "Message IMAGE ImageSlot",
    "Planning": "plan Report",
    "Models and machines": "info family_info ModelFacts machine_info MachineFacts",
    "Checking": "check Check check_against FidelityCheck record_reference WrittenReference",
    "Converting and quantizing": (
        "convert quantize Conversion WrittenFile imatrix WrittenImatrix quantize_awq WrittenAwq"
    ),
    "Measuring": "bench MeasuredSpeed",
    "Serving": "serve ServerSettings EngineLimits",
    "Types": "ImageSource Images MaxTiles GenerationKeywords ReadKeywords",
    "Errors": "IvlError",
}
"""The names of `ivl.__all__` by subject; one that is missing here ends the build. What has a dot is
of a module below it."""
PLACED = " ".join(REFERENCE.values()).split()

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Links lead from page to page of the site; one to a file without a page is its text alone."""
    uri = page.file.src_uri  # type: ignore[attr-defined]
    source = next((name for name, other in PAGES.items() if other == uri), f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return link[0]
        origin = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if origin in PAGES:
            inside = PAGES[origin]
        elif origin.startswith("docs/"):
            inside = origin.removeprefix("docs/")
        elif (ROOT / origin).is_dir() and f"{origin}/README.md" in PAGES:
            inside = PAGES[f"{origin}/README.md"]
        elif (ROOT / origin).exists():
            return text
        else:
            return link[0]  # mkdocs says that there is no such file
        relative = posixpath.relpath(inside, posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({relative}{'#' if anchor else ''}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def public_names() -> set[str]:
    """`ivl.__all__`, but for what needs no entry of its own."""
    package = ast.parse((ROOT / "src/ivl/__init__.py").read_text("utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in package.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {*names} - {"__version__", "errors"}


def reference() -> str:
    """A page of directives, which mkdocstrings fills with signatures and docstrings."""
    if odd := {name for name in PLACED if "." not in name} ^ public_names():
        raise PluginError(f"docs/site.py and ivl.__all__ differ: {', '.join(sorted(odd))}")
    errors = ast.parse((ROOT / "src/ivl/errors.py").read_text("utf-8"))
    classes = [node.name for node in errors.body if isinstance(node, ast.ClassDef)]
    others = [f"errors.{name}" for name in classes if name not in PLACED]
    lines = ["# Python API", "", "What `import ivl` offers. [Python](python.md) shows it in use."]
    for title, names in REFERENCE.items():
        lines += ["", f"## {title}", ""]
        own = others if title == "Errors" else []
        lines += [f"::: ivl.{name}\n" for name in [*names.split(), *own]]
    return "\n".join(lines)


class DocstringsAsMarkdown(griffe.Extension):
    """Public names in backticks become links, and options, told as `name: what it is`, a list."""

    def __init__(self) -> None:
        self.names = {name.split(".")[-1]: f"ivl.{name}" for name in PLACED}

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if not obj.docstring:
            return
        text = re.sub(r"(?m)^(\w+(?:, \w+)*): ", r"- `\1`: ", obj.docstring.value)
        text = re.sub(r"(?m)^(?!- |\s)(.*\n)(?=- )", r"\1\n", text)
        text = re.sub(
            r"`(\w+)`",
            lambda word: (
                f"[{word[0]}][{self.names[word[1]]}]" if word[1] in self.names else word[0]
            ),
            text,
        )
        obj.docstring.value = text
