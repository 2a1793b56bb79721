"""Options that errors, notes and the documentation name are there, in the words of the place."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

from ivl.cli.main import COMMANDS, app, run
from ivl.cli.words import speak_of, spoken

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ivl"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])")

FOREIGN = {
    # swift, DeepSpeed and llama.cpp, by which adapters are merged; pip; xcode-select; vLLM
    *("--adapters", "--lora", "--editable", "--install", "--attention-backend"),
}
"""Options of other programs that hints tell people to use."""

OF_OTHERS = ("planner/backends.py", "planner/report.py")
"""Files that write command lines of llama.cpp and vLLM, and style sheets."""


def all_options() -> set[str]:
    group = typer.main.get_command(app)
    commands = [group.get_command(None, name) for name in COMMANDS]  # type: ignore[attr-defined]
    params = [param for command in [group, *commands] for param in command.params]
    return {option for param in params for option in param.opts} | {"--help"}


def told() -> list[tuple[str, str]]:
    """Every text of the package that is not a docstring, with its place."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in OF_OTHERS:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        documentation = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node not in documentation:
                    found.append((f"{name}:{node.lineno}", node.value))
    return found


def test_every_option_that_is_named_exists() -> None:
    known = all_options() | FOREIGN
    missing = [
        f"{place} names {option}"
        for place, text in told()
        for option in OPTION.findall(text)
        if option not in known
    ]
    assert not missing, "\n".join(missing)


def test_every_command_line_in_the_documentation_has_options_that_exist() -> None:
    known = all_options()
    missing = [
        f"{page.name}: {line.strip()}"
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for line in re.findall(
            r"(?m)^ *(?:\$ )?ivl [^|;\n]*|`ivl [^`\n]*`", page.read_text("utf-8")
        )
        for option in OPTION.findall(line)
        if option not in known
    ]
    assert not missing, "\n".join(missing)


def test_below_the_commands_options_have_the_names_of_python() -> None:
    """What Python raises too says `mmproj`, and not --mmproj."""
    floors = ("engine", "model", "prompt", "checkpoint", "documents")
    of_commands_alone = {"--force", "--allow-requantize", *FOREIGN}
    # The server's own settings, in a file of the server's engine.
    of_commands_alone |= {"--kv-tokens"}
    modules = ("api.py", "config", "facts.py", "loading.py", "serving.py")
    files = (*(f"{floor}/" for floor in floors), *modules)
    found = [
        f"{place} names {option}"
        for place, text in told()
        if place.startswith(files)
        for option in OPTION.findall(re.sub("`ivl [^`]*`", "", text))
        if option not in of_commands_alone
    ]
    assert not found, "\n".join(found)


def test_names_become_the_options_of_the_command() -> None:
    speak_of({"max_tiles": "--max-tiles", "device": "--device", "kv": "--kv"})
    assert spoken("Use a smaller `max_tiles`.") == "Use a smaller --max-tiles."
    assert spoken('`device="cpu"` always is.') == "--device cpu always is."
    assert spoken("Take `kv=8bit`.") == "Take --kv 8bit."
    assert spoken("`git lfs pull` in `docs`") == "`git lfs pull` in `docs`"
    hint = "make it smaller, or raise `max_pixels` if you trust the file"
    assert spoken(hint) == "make it smaller"
    speak_of({"max_pixels": "--max-pixels"})
    assert spoken(hint) == "make it smaller, or raise --max-pixels if you trust the file"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ask", "{picture}", "What?", "--max-tiles", "0"], "--max-tiles is 0"),
        (["ask", "{picture}", "What?", "--context", "60"], "(--max-tiles)"),
        (["ask", "{picture}", "What?", "--context", "60"], "(--context)"),
        (["ask", "{picture}", "What?", "--max-pixels", "99"], "raise --max-pixels"),
        (["read", "{picture}", "--max-pixels", "99"], "raise --max-pixels"),
        (["read", "{picture}", "--max-pixels", "0"], "--max-pixels is 0"),
        (["chat", "{picture}", "--max-pixels", "99"], "raise --max-pixels"),
        (["ask", "Hi", "--mmproj", "{picture}"], "--mmproj is the projector"),
        (["ask", "Hi", "--device", "cuda:99"], "--device cpu"),
    ],
)
def test_an_error_names_what_one_types(
    arguments: list[str],
    expected: str,
    tiny: Path,
    picture: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([argument.format(picture=picture) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert not re.search(r"`[a-z]+(_[a-z]+)+`", shown), "a name of Python's"


def test_an_image_may_be_larger_where_it_is_allowed(
    tiny: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["ask", picture, "What?"], ["read", picture]):
        assert run([*command, "--max-pixels", str(640 * 480), "--max-tokens", "1"]) == 0
        assert run([*command, "--max-pixels", str(640 * 480 - 1), "--max-tokens", "1"]) == 2
