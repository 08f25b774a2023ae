"""The whole GPU kit at tiny size on this CPU, as `make gpu-kit-tiny` runs it, and what it needs to be installed."""

import importlib.util
import json
import subprocess
import sys

import pytest

from deberta_jax.ops.attention import IMPLEMENTATIONS
from tests.gpu_kit import ENVIRONMENT, FOLDERS, ROOT, run_kit

PARTS = ["machine", "correctness", "attention-jax", "attention-torch", "model-jax", "model-torch"]
ABSENT = [
    *("more_itertools", "cloudpickle", "tyro", "docstring_parser", "typeguard", "shtab"),
    *("beartype", "torch", "transformers"),
]
NO_KERNEL = "kernels for TPUs and for NVIDIA's GPUs, and this program is for neither"


@pytest.mark.slow
@pytest.mark.system
def test_all_parts_on_a_cpu(tmp_path):
    output = tmp_path / "kit.json"
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    command = ("make", "gpu-kit-tiny", f"PYTHON={sys.executable}", f"KIT_FLAGS=--output {output}")
    made, results = run_kit(output, command=command)
    assert made.returncode == 0, made.stdout + made.stderr
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before
    assert (results["state"], results["tiny"]) == ("complete", True)
    parts = results["parts"]
    assert list(parts) == PARTS
    assert not any(part["failed"] or part["reason"] for part in parts.values())
    assert all(f"== {name}:" in made.stdout for name in PARTS)
    check_machine(parts["machine"]["rows"])
    check_correctness(parts["correctness"]["rows"])
    check_times(parts["attention-jax"]["rows"])
    check_models(parts["model-jax"]["rows"])
    if importlib.util.find_spec("torch") is None:
        rows = parts["attention-torch"]["rows"] | parts["model-torch"]["rows"]
        assert len(rows) > 6
        assert {row["status"] for row in rows.values()} == {"skipped"}
        assert {row["reason"] for row in rows.values()} == {"torch is not importable: No module named 'torch'"}
        assert "torch is not importable" in made.stdout


def check_machine(rows):
    assert rows["jax"]["backend"] == "cpu"
    assert rows["jax"]["implementations"] == list(IMPLEMENTATIONS)
    assert rows["software"]["packages"]["jax"] == importlib.metadata.version("jax")
    assert "flashdeberta" in rows["software"]["missing"]


def check_correctness(rows):
    compared = [row for row in rows.values() if "errors" in row]
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["implementation"] for row in compared} == set(IMPLEMENTATIONS)
    assert len(compared) == len(IMPLEMENTATIONS) * len({row["setting"] for row in compared})
    for row in compared:
        assert row["interpreted"] == (row["implementation"] == "pallas")
        assert set(row["errors"]) == {"context", "query", "key", "value", "pos_key", "pos_query"}
        assert all(error <= row["limits"][name] <= 3e-2 for name, error in row["errors"].items())


def check_times(rows):
    names = {row["name"] for row in rows.values() if row["status"] == "ok"}
    assert names == {"plain, XLA", *IMPLEMENTATIONS} - {"pallas"}
    for name, row in rows.items():
        if row["status"] == "ok":
            assert row["milliseconds"] > 0
            assert row["over plain"] > 0
            assert row["dispatch milliseconds"] > 0
        elif name.startswith("pallas"):
            assert NO_KERNEL in row["reason"]
        else:
            assert "cuDNN" in name
            assert row["reason"] == "cuDNN needs a GPU"


def check_models(rows):
    assert {row["job"] for row in rows.values()} == {"forward", "train"}
    assert {row["texts"] for row in rows.values()} == {"fixed", "mixed"}
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["attention"] == "blocked"
        assert row["milliseconds"] > 0
        assert row["tokens_per_second"] > 0
        assert row["program_bytes"] > 0


@pytest.mark.system
def test_a_wrong_implementation_is_reported(tmp_path):
    wrong, output = tmp_path / "wrong.py", tmp_path / "kit.json"
    wrong.write_text(
        "from deberta_jax.ops.attention import disentangled_attention\n"
        "def mirrored(query, key, value, pos_key, pos_query, relative_index, **options):\n"
        "    arrays = query, key, value, pos_key, pos_query\n"
        "    index = relative_index[::-1].copy()\n"
        "    return disentangled_attention(*arrays, index, **options, implementation='xla')[0]\n"
    )
    made, results = run_kit(output, "--only", "correctness", "--extra", f"{wrong}:mirrored", "--output", str(output))
    assert made.returncode == 1
    assert list(results["parts"]) == ["machine", "correctness"]
    rows = [row for row in results["parts"]["correctness"]["rows"].values() if "errors" in row]
    # One token alone has no distance that could be wrong.
    failed = {(row["implementation"], row["setting"].split()[0]) for row in rows if row["status"] == "failed"}
    assert failed == {("mirrored", "40"), ("mirrored", "17")}
    assert sum(row["implementation"] == "mirrored" for row in rows) == 3
    assert made.stdout.count("FAILED: mirrored") == 4, "both, in the part's table and in the last one"


_LISTED = """
import importlib.machinery, json, sys

class Present(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

folders, absent = json.loads(sys.argv[1])
sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Present]
sys.path[:0] = folders
import deberta_jax
from worker import Request

listed = {}
for name in ("machine", "correctness", "attention_times", "torch_attention", "model_times", "torch_model_times"):
    module = importlib.import_module(name)
    listed[name] = [[case.name for case in module.cases(Request(tiny))] for tiny in (True, False)]
print(json.dumps(listed))
"""


def test_package_and_kit_need_none_of_what_a_bare_machine_lacks():
    """A machine with JAX for its GPU and PyTorch, and nothing installed for this project."""
    arguments = json.dumps([[*FOLDERS, str(ROOT)], ABSENT])
    made = subprocess.run(
        [sys.executable, "-c", _LISTED, arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    for name, (tiny, full) in json.loads(made.stdout).items():
        assert tiny, name
        assert len(full) >= len(tiny), name
        assert len(set(full)) == len(full), name
