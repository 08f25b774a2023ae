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
    ("data/stored_tables.py", "np.save"),
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


# Paths that no user gives, and names of files on local disks alone.
LOCAL = {
    ("planning/child.py", "Path(sys.argv[1])"),
    ("serving/app.py", "Path(__file__)"),
    ("training/demo_text.py", "Path(sysconfig.get_paths()['stdlib'])"),
    ("compilation.py", "Path('/proc/cpuinfo')"),
    ("compilation.py", "Path(given)"),  # after a look for "://"
    ("weights/verification.py", "Path('memory')"),
    ("weights/orbax_writer.py", "Path(directory)"),  # after is_remote
    ("weights/orbax_files.py", "Path(directory)"),  # likewise
    ("training/checkpoints.py", "Path(directory)"),  # likewise
    ("inference/trained.py", "Path(output)"),  # likewise
    ("inference/trained.py", "Path(model)"),  # that an output on a local disk may be in
    ("text/loading.py", "Path(directory)"),  # likewise
    ("hub.py", "Path(name)"),  # after is_remote
    ("hub.py", "Path(where)"),  # likewise
    ("hub.py", "Path(huggingface_hub.snapshot_download(where, revision=revision, allow_patterns=wanted))"),
    ("inference/prediction.py", "Path(name)"),  # its stem and suffix
    ("inference/prediction.py", "Path(share.index(output))"),  # is refused in a bucket
    ("data/files.py", "Path(path)"),  # after is_remote
    ("data/documents.py", "Path(file)"),  # its suffix
    ("data/hub_datasets.py", "Path(path)"),  # that the library datasets reads
    ("data/corpus.py", "Path(names[0])"),  # that is a directory
    ("training/pretraining.py", "Path(path)"),  # likewise
}
PARTS = {"suffix", "stem", "name", "is_dir", "is_file", "parents", "parent"}


def conversions(tree: ast.AST) -> set[str]:
    """Calls of ``Path`` whose result is more than looked at: they cut gs:// to gs:/."""
    calls = lambda node: isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Path"
    looked_at = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in PARTS}
    return {ast.unparse(n) for n in ast.walk(tree) if calls(n) and id(n) not in looked_at}


def test_no_name_that_a_user_gives_is_made_a_local_path():
    found = {
        (path.relative_to(PACKAGE).as_posix(), call)
        for path in sorted(PACKAGE.rglob("*.py"))
        if "storage" not in path.parts
        for call in conversions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - LOCAL == set()
    assert LOCAL - found == set(), "the list is no longer than the code needs"
