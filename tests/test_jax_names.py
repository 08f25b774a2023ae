"""Only public names of JAX, Flax, Optax and Orbax are used: private ones move without a word, deprecated ones go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deberta_jax", "tests", "benchmarks", "train", "convert", "configs", "scripts")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore")
# Where a module of this package hands on a library under a name.
HANDED_ON = {"deberta_jax.weights.orbax_library": {"ocp": "orbax.checkpoint"}}

# Namespaces of JAX's internals. What is public in them is listed with the place that documents it.
INTERNAL = ("jax.core", "jax.interpreters", "jax.lib", "jaxlib")
DOCUMENTED = {
    "jax.interpreters.mlir.register_lowering": "JAX's guide to primitives defines lowering rules with it",
}
# Attributes through which a program could read the parameters of JAX's primitives, whose names are private.
JAXPR_ATTRIBUTES = ("eqns", "jaxpr")


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def names_of(source: str) -> Iterator[str]:
    """Full dotted names of what a file imports from the libraries and reads from these imports."""
    tree, meaning = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in LIBRARIES:
                    yield alias.name
                    meaning[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module in HANDED_ON:
            for alias in node.names:
                meaning[alias.asname or alias.name] = HANDED_ON[node.module][alias.name]
    for node in ast.walk(tree):
        dotted = _dotted(node)
        if dotted and dotted[0] in meaning:
            yield ".".join([meaning[dotted[0]], *dotted[1:]])


def _dotted(node: ast.AST) -> list[str]:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) and parts else []


def private(name: str) -> bool:
    if any(name == known or name.startswith(f"{known}.") for known in DOCUMENTED):
        return False
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return hidden or any(name == inside or name.startswith(f"{inside}.") for inside in INTERNAL)


def test_no_private_name_is_used():
    files = sources()
    assert len(files) > 200
    found = {name: path for path in files for name in names_of(path.read_text(encoding="utf-8")) if private(name)}
    assert found == {}


def test_no_parameter_of_a_primitive_is_read():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in JAXPR_ATTRIBUTES, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "source",
    [
        "from jax._src import distributed",
        "import jax\njax._src.core",
        "import jax.numpy as jnp\njax = 1\njnp._private(1)",
        "from jax.core import ShapedArray",
        "import jax\njax.core.ShapedArray((1,), 'float32')",
        "from jax.interpreters import mlir\nmlir.ir_type",
        "import orbax.checkpoint as ocp\nocp.type_handlers._open",
        "from deberta_jax.weights.orbax_library import ocp\nocp.type_handlers._open",
    ],
)
def test_a_private_name_is_seen(source):
    assert [name for name in names_of(source) if private(name)]
