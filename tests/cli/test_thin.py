"""The command line only parses, calls and prints: what a command does lives in a package below it."""

import ast
from pathlib import Path

import pytest

from deberta_jax import cli
from deberta_jax.cli.main import COMMANDS

MODULES = sorted(Path(cli.__file__).parent.glob("*.py"))
# Modules that commands share; every other module is a command.
SHARED = {"text", "__init__", "main", "configfile", "output", "progress"}
LINES = 25


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(function):
    """Lines of a function's body, without its docstring."""
    statements = function.body[ast.get_docstring(function) is not None :]
    return function.end_lineno - statements[0].lineno + 1


def imported(path):
    """Names of the modules of this package that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("deberta_jax.cli.") for name in found if name.startswith("deberta_jax.cli.")}


def test_every_command_is_a_module_of_its_name():
    assert {path.stem for path in MODULES} == set(COMMANDS) | SHARED


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_function_is_long(path):
    long = [node.name for node in functions(path) if length(node) > LINES]
    assert not long, "move what it does to a package below the command line"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_command_imports_another(path):
    assert not {name.split(".")[0] for name in imported(path)} & set(COMMANDS)
