"""The rules of the house, read from the source: who may import whom, sizes, names, what is cheap.

The floors are in `FLOORS`. A new folder or file directly below `src/ivl` gets its floor there
first.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ivl"

FLOORS = {
    "__main__": 8,
    "cli": 8,
    "planner": 8,
    "server": 7,
    "documents": 7,
    "measure": 7,
    "api": 7,
    "facts": 7,
    "loading": 7,
    "serving": 7,
    "conversion": 7,
    "engine": 6,
    "model": 5,
    "kernels": 4,
    "checkpoint": 3,
    "quant": 2,
    "pages": 2,
    "prompt": 2,
    "footprint": 2,
    "config": 1,
    "config_keys": 1,
    "config_quantization": 1,
    "family": 1,
    "kv": 1,
    "host": 1,
    "refused": 1,
    "paths": 1,
    "spelling": 1,
    "errors": 1,
    "interrupts": 1,
    "json_values": 1,
    "toolchain": 1,
}
"""A file imports only from its own floor or from floors below it."""

WORDS = {"errors", "family", "host", "interrupts", "json_values", "kv", "paths", "spelling"}
ABOVE_THE_API = {
    "cli": {
        *("cli", "server", "planner", "api", "loading", "conversion", "facts", "serving", "engine"),
        *("documents", "measure", "toolchain", *WORDS),
    },
    "server": {"server", "api", "loading", "engine", "documents", "measure", *WORDS},
}
"""Rooms that use the API and the engine and nothing below them, and what they may import. The names
that the lazy door opens on are the API's."""

LAZY_DOOR = PACKAGE / "__init__.py"
"""Exempt from the floors: it opens on the names that users import. Through it one reaches `api`."""

WITHOUT_TORCH = ("pages", "prompt", "footprint", "planner", "quant")
LONG_FILE_LINES = 700
LONG_FUNCTION_LINES = 80
CONTAINMENT = PACKAGE / "engine" / "containment.py"
"""Catches everything: there a failure of one request is kept from the others, and written down."""
NAMES_WITHOUT_A_SUBJECT = {"utils.py", "helpers.py", "common.py"}

LIBRARIES = {"torch", "os"}
PRIVATE_OF_LIBRARIES = {
    "tensor._replace",  # of a named tuple, whose fields may have that name
    "oracle._attn_implementation",  # of a configuration of transformers
}


IMPORTED_AS = {
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
}
"""Dependencies whose module has another name."""

ORACLES = {
    ("transformers", "measure/reference.py"),
    ("triton", "kernels/triton/attention.py"),
    ("triton", "kernels/triton/matrix.py"),
    ("triton", "kernels/triton/pointwise.py"),
    ("triton", "kernels/triton/products.py"),
}
"""What one file may import when it happens to be installed."""


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def package_files() -> list[Path]:
    return python_files("src/ivl")


def everything() -> list[Path]:
    return python_files("src/ivl", "training", "bench", "tests")


def module_of(path: Path) -> str:
    """The dotted name of a file of the package; a folder's `__init__.py` has the folder's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """The line and the dotted name of everything that a file imports, wherever in it.

    `from a import b` gives `a.b`, for b may be a module; a relative name is made absolute.
    """
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def floor_of(module: str) -> int:
    """The floor of `ivl.something...`; of the lazy door itself, that of `api`."""
    parts = module.split(".")
    if len(parts) == 1:
        return FLOORS["api"]
    if parts[1] == "__version__":
        return 0
    # A name that is no folder or file of the package is one that the door fetches from `api`.
    known = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
    return FLOORS[parts[1]] if known or parts[1] in FLOORS else FLOORS["api"]


def climbs(path: Path, source: str) -> list[str]:
    """The imports of a file that go up to a floor above its own."""
    own = floor_of(module_of(path))
    return [
        f"{path.relative_to(ROOT)}:{line} (floor {own}) imports {module} (floor {floor_of(module)})"
        for line, module in imports(path, source)
        if module.split(".")[0] == "ivl" and floor_of(module) > own
    ]


def run_python(program: str) -> str:
    """Run a program in an interpreter of its own and return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_everything_has_a_floor() -> None:
    units = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in package_files()}
    assert units - {"__init__"} <= set(FLOORS)


def test_nothing_imports_from_a_floor_above() -> None:
    found = [
        climb
        for path in package_files()
        if path != LAZY_DOOR
        for climb in climbs(path, path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "num_climbs"),
    [
        ("model/decoder.py", "from ivl.engine.engine import Engine", 1),
        ("model/decoder.py", "def f():\n    import ivl.cli.main", 1),
        ("model/decoder.py", "from ..engine import cache", 1),
        ("model/__init__.py", "from ..engine import cache", 1),
        ("model/decoder.py", "from ivl import load", 1),
        ("model/decoder.py", "import ivl", 1),
        ("model/decoder.py", "from ivl import errors, checkpoint, __version__", 0),
        ("model/decoder.py", "from .attention import attend\nimport torch", 0),
        ("config.py", "from ivl.prompt import tiles", 1),
        ("cli/ask.py", "import ivl\nfrom ivl import api\nfrom ivl.model import decoder", 0),
    ],
)
def test_the_floors_are_read_rightly(file: str, source: str, num_climbs: int) -> None:
    assert len(climbs(PACKAGE / file, source)) == num_climbs


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first files that import one another, in order; empty where there are none."""
    ended: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in ended:
            return []
        for other in sorted(graph[module]):
            if found := walk(other, [*path, module]):
                return found
        ended.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_no_files_import_one_another() -> None:
    """Imports within functions and for types alone count too."""
    modules = {module_of(path): path for path in package_files() if path != LAZY_DOOR}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for _, name in imports(path, path.read_text("utf-8")):
            home = name if name in modules else name.rpartition(".")[0]
            # An extension in a folder is not the folder.
            if home in modules and home != module and not name.endswith("._cpu"):
                graph[module].add(home)
    assert not circle(graph)


def test_circles_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def reaches_below(path: Path, source: str) -> list[str]:
    """The imports of a file in a room above the API that go around it."""
    allowed = ABOVE_THE_API[path.relative_to(PACKAGE).parts[0]]
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for line, module in imports(path, source)
        if (parts := module.split("."))[0] == "ivl"
        and len(parts) > 1
        and is_module(".".join(parts[:2]))
        and parts[1] not in allowed
    ]


@pytest.mark.parametrize("room", ABOVE_THE_API)
def test_what_is_above_the_api_does_not_go_around_it(room: str) -> None:
    found = [
        reach
        for path in python_files(f"src/ivl/{room}")
        for reach in reaches_below(path, path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "num_reaches"),
    [
        ("from ivl.pages.reader import Page", 1),
        ("def f():\n    from ivl import model, checkpoint", 2),
        ("import ivl\nfrom ivl import Page, __version__, api\nfrom ivl.engine import engine", 0),
    ],
)
def test_ways_around_the_api_are_read_rightly(source: str, num_reaches: int) -> None:
    assert len(reaches_below(PACKAGE / "server/app.py", source)) == num_reaches


OUTSIDE_READS = r"ivl(?!\.kernels\.(triton|_cpu))\b"
"""All of the package but for what is there only with a GPU's compiler or a built extension."""


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_what_stands_outside_imports_what_is_there() -> None:
    """Benches and the training have few tests of their own, and tests import within functions."""
    found = []
    for path in python_files("bench", "training", "tests"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and re.match(OUTSIDE_READS, node.module or ""):
                module = importlib.import_module(node.module or "")
                found += [
                    f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and not is_module(f"{node.module}.{alias.name}")
                ]
    assert not found, "\n".join(found)


def declared_dependencies() -> set[str]:
    """The names under which the dependencies of pyproject.toml are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]]
    return {IMPORTED_AS.get(name, name) for name in names}


def test_images_and_pdfs_are_opened_in_one_room() -> None:
    """In `pages/` alone: no other file imports PDFium or HEIF, or calls `Image.open`."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in package_files()
        if PACKAGE / "pages" not in path.parents
        for line, opens in [
            *(
                (line, module.split(".")[0] in ("pypdfium2", "pillow_heif"))
                for line, module in imports(path, path.read_text("utf-8"))
            ),
            *(
                (number, "Image.open(" in line)
                for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            ),
        ]
        if opens
    ]
    assert not found, "\n".join(found)


def test_only_declared_dependencies_are_imported() -> None:
    allowed = {"ivl", *sys.stdlib_module_names, *declared_dependencies()}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in package_files()
        for line, module in imports(path, path.read_text("utf-8"))
        if (origin := module.split(".")[0]) not in allowed
        and (origin, path.relative_to(PACKAGE).as_posix()) not in ORACLES
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_no_torch_by_name(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files(f"src/ivl/{folder}")
        for line, module in imports(path, path.read_text("utf-8"))
        if module.split(".")[0] == "torch"
    ]
    assert not found, "\n".join(found)


def test_no_torch_by_way_of_others() -> None:
    modules = [
        module_of(path) for folder in WITHOUT_TORCH for path in python_files(f"src/ivl/{folder}")
    ]
    program = "".join(f"import {module}\n" for module in [*modules, "sys"])
    assert run_python(program + "print('torch' in sys.modules)") == "False"


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, ivl\nprint(sorted({'torch', 'numpy', 'PIL', 'typer'} & {*sys.modules}))"
    assert run_python(program) == "[]"


def test_loading_a_model_does_not_wait_for_symbolic_algebra() -> None:
    """torch imports sympy, a second long, when values are drawn for parameters without memory."""
    assert run_python("import sys, ivl\nivl.load('demo')\nprint('sympy' in sys.modules)") == "False"


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from ivl.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'rich', 'pydantic'} & {*sys.modules}))"
    )
    assert run_python(program) == "[]"


def long_places(source: str) -> Iterator[str]:
    """What a reader may want to know of a file: that it is long, or has long functions."""
    if (num_lines := len(source.splitlines())) > LONG_FILE_LINES:
        yield f" has {num_lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or 0) - node.lineno + 1
            if num_lines > LONG_FUNCTION_LINES:
                yield f":{node.lineno} {node.name} has {num_lines} lines"


def test_what_is_long_is_shown() -> None:
    """As a warning, not a failure: one subject is not split for its length alone."""
    for path in everything():
        for what in long_places(path.read_text("utf-8")):
            warnings.warn(f"{path.relative_to(ROOT)}{what}", stacklevel=1)
    long_function = "def f():\n" + "    x\n" * LONG_FUNCTION_LINES
    assert [*long_places(long_function)] == [f":1 f has {LONG_FUNCTION_LINES + 1} lines"]
    assert [*long_places("x\n" * LONG_FILE_LINES)] == []


def test_every_file_is_named_after_its_subject() -> None:
    found = [path for path in everything() if path.name in NAMES_WITHOUT_A_SUBJECT]
    assert not found


def test_every_public_module_says_what_it_is() -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in package_files()
        if (not path.stem.startswith("_") or path.name == "__init__.py")
        and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not found, "\n".join(found)


def test_a_public_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    found = [f"{name}: {', '.join(files)}" for name, files in homes.items() if len(files) > 1]
    assert not found, "\n".join(found)


def is_any(annotation: ast.expr) -> bool:
    """Whether `Any` is the annotation or a part of it, written out or as a text."""
    return any(
        (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        or (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.search(r"\bAny\b", node.value) is not None
        )
        for node in ast.walk(annotation)
    )


def public_annotations(body: list[ast.stmt]) -> Iterator[tuple[int, str, ast.expr]]:
    """The line, the name and the type of what others see of a module or a class.

    Those of parameters, results and attributes; `__init__` is how its class is called.
    """
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_annotations(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == "__init__":
                inside = [n for n in ast.walk(node) if isinstance(n, ast.AnnAssign)]
                yield from public_annotations([n for n in inside if "." in ast.unparse(n.target)])
            elif node.name.startswith("_"):
                continue
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            for parameter in every:
                if parameter and parameter.annotation:
                    yield parameter.lineno, f"{node.name}({parameter.arg})", parameter.annotation
            if node.returns:
                yield node.lineno, node.name, node.returns
        elif isinstance(node, ast.AnnAssign):
            owner, _, name = ast.unparse(node.target).rpartition(".")
            if owner in ("", "self") and not name.startswith("_"):
                yield node.lineno, name, node.annotation


def vague(source: str) -> list[str]:
    """Where a public signature or attribute is of type `Any`."""
    return [
        f"{line} {name}"
        for line, name, annotation in public_annotations(ast.parse(source).body)
        if is_any(annotation)
    ]


WITH_ANY = {
    "cli/main.py": "the classes of typer, whose methods it overrides",
    "planner/planning.py": "keywords that are passed on",
    "prompt/bpe.py": "keywords that are passed on",
    "prompt/sentencepiece_tokenizer.py": "keywords that are passed on",
}
"""Where `Any` stays, and why."""


def test_public_signatures_name_their_types() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{what}"
        for path in package_files()
        if not path.name.startswith("_") or path.name == "__init__.py"
        if path.relative_to(PACKAGE).as_posix() not in WITH_ANY
        for what in vague(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "num_vague"),
    [
        ("def f(x: Any, *y: list[Any], **z: 'dict[str, Any]') -> typing.Any: ...", 4),
        ("async def f(x, /, *, y: Any = 1): ...", 1),
        ("class A:\n    x: Any\n    def f(self, x: Any): ...", 2),
        ("class A:\n    def __init__(self, x: Any):\n        self.y: list[Any] = x", 2),
        ("class A:\n    def __init__(self):\n        self._y: Any = 1\n        z: int = 2", 0),
        ("x: Any = 1", 1),
        ("def _f(x: Any): ...\nclass _A:\n    x: Any\n_x: Any = 1", 0),
        ("def f(x: object) -> Anything:\n    y: Any = x\n    def g(z: Any): ...", 0),
    ],
)
def test_vague_signatures_are_read_rightly(source: str, num_vague: int) -> None:
    assert len(vague(source)) == num_vague


def reaches(source: str) -> Iterator[tuple[int, str]]:
    """Private attributes that are read of anything but the object itself, or one of its class."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "other") and owner.split(".")[0] not in LIBRARIES:
                yield node.lineno, f"{owner}.{node.attr}"


def test_nobody_reaches_into_another() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in package_files()
        for line, what in reaches(path.read_text("utf-8"))
        if what not in PRIVATE_OF_LIBRARIES
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "num_reaches"),
    [
        ("talk._cache.truncate(0)", 1),
        ("self._engine._store", 1),
        ("self._store; other._seen; cls._of(1); torch._int_mm; a.__class__", 0),
    ],
)
def test_reaches_are_read_rightly(source: str, num_reaches: int) -> None:
    assert len(list(reaches(source))) == num_reaches


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether it is bare or names Exception; BaseException too, unless it ends by raising again."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
    raises_again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return (
        handler.type is None
        or "Exception" in names
        or ("BaseException" in names and not raises_again)
    )


def test_no_failure_is_swallowed_unnamed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in package_files()
        if path != CONTAINMENT
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]
    assert not found, "\n".join(found)
