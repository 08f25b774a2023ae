"""No module beside ``storage`` touches the disk by itself, which the syntax trees of the package show."""

import ast
from pathlib import Path

from deberta_jax import storage

PACKAGE = Path(storage.__file__).parents[1]

# What opens, makes, moves or removes something on a disk: as a name, an attribute of a module, or a method of a path.
FUNCTIONS = {"open"}
OF_MODULES = {
    "os": {"open", "rename", "replace", "remove", "unlink", "mkdir", "makedirs", "link", "symlink", "fsync", "listdir"},
    "shutil": None,
    "tempfile": None,
    "glob": None,
    "fcntl": None,
    "filelock": None,
    "np": {"load", "save", "savez", "savez_compressed", "memmap", "fromfile"},
    "mmap": {"mmap"},
}
METHODS = {
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "rmdir",
    "touch",
    "rename",
    "tofile",
    "symlink_to",
}
# Functions of numpy that are given an open file or a buffer, and Orbax's own reading and writing.
ALLOWED = {
    ("data/cache.py", "np.save"),
    ("data/prepare.py", "np.save"),
    ("training/loop.py", "np.savez_compressed"),
    ("weights/verification.py", "np.savez"),
}


def accesses(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in FUNCTIONS:
            found.add(function.id)
        if isinstance(function, ast.Attribute):
            module = function.value.id if isinstance(function.value, ast.Name) else ""
            if module in OF_MODULES:
                names = OF_MODULES[module]
                found |= {f"{module}.{function.attr}"} if names is None or function.attr in names else set()
            elif module != "storage" and function.attr in METHODS:
                found.add(f".{function.attr}")
            elif function.attr == "open" and node.args and isinstance(node.args[0], ast.Constant):
                found.add(".open")  # with a mode, as a path's
    return found


def test_every_other_module_reads_and_writes_through_this_one():
    found = {
        (path.relative_to(PACKAGE).as_posix(), access)
        for path in sorted(PACKAGE.rglob("*.py"))
        if "storage" not in path.parts
        for access in accesses(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED
    own = [accesses(ast.parse(path.read_text(encoding="utf-8"))) for path in (PACKAGE / "storage").glob("*.py")]
    assert len(set().union(*own)) > 10, "the test sees accesses"
