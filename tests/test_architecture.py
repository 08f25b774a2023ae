"""The package's structure: no import cycles, short functions and files, code as the formatter lays it out."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deberta_jax

ROOT = Path(deberta_jax.__file__).parent
LONGEST_FUNCTION, LONGEST_FILE = 80, 420
# In two parts, so that this file does not hold what it looks for.
SKIP = "fmt: " + "skip"


def module_name(path: Path) -> str:
    """The dotted name of a module's file; of ``__init__.py`` that of its package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """The package's modules that a module imports, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in (whole if whole in FILES else node.module,) if name in FILES)


def import_graph() -> dict[str, set[str]]:
    return {name: set(imported_modules(tree)) - {name} for name, tree in TREES.items()}


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_a_cycle_would_be_found():
    graph = import_graph()
    assert "deberta_jax.errors" in graph["deberta_jax.config"]
    graph["deberta_jax.errors"] = {"deberta_jax.config"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_test_files_have_names_of_their_own():
    """Pytest imports a test by the name of its file alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_functions_and_files_are_short():
    lengths = [(name, len(path.read_text(encoding="utf-8").splitlines())) for name, path in FILES.items()]
    assert [(name, count) for name, count in lengths if count > LONGEST_FILE] == []
    lengths = [
        (f"{name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) > 1000
    assert [(name, count) for name, count in lengths if count > LONGEST_FUNCTION] == []


def test_the_formatter_is_never_switched_off():
    repository = ROOT.parent
    folders = [repository / name for name in ("deberta_jax", "tests", "benchmarks", "configs", "convert", "train")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 300
    assert [str(path) for path in files if SKIP in path.read_text(encoding="utf-8")] == []
