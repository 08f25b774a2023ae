"""Reads what the TPU compiler writes about a program that it compiles: the operations and the schedule of its kernels.

libtpu reads its options once, when it is loaded. Each program is therefore compiled in a process of its own, with
options that make the compiler write its intermediate programs into a folder. No TPU is needed, and none was used.
"""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def compile_with_dump(function: str, folder: Path, **arguments: Any) -> None:
    """Compiles a program in another process; the compiler writes its intermediate programs into ``folder``.

    Args:
      function: name of a function of ``benchmarks.tpu_aot`` that returns a compiled program.
      folder: an empty folder. It also receives the optimised program, as ``program.hlo``.
      **arguments: of the function, as JSON has them.

    Raises:
      RuntimeError: the program does not compile; the message ends with the last lines of the process.
    """
    mosaic = folder / "mosaic"
    mosaic.mkdir(parents=True)
    options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_mosaic_dump_to={mosaic}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_schedule", function, json.dumps(arguments), str(folder)],
        cwd=ROOT,
        env=os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-12:])
        raise RuntimeError(f"{function} of {arguments} does not compile:\n{last}")


def count_operations(folder: Path) -> dict[str, dict[str, int]]:
    """Returns for each Pallas kernel of a program how often each operation of Mosaic's dialect occurs, by their names.

    Counts the kernels as they reach Mosaic, before it divides their arrays into registers.
    """
    counts = {}
    for file in sorted((folder / "mosaic").glob("*-post-deserialization.txt")):
        text = file.read_text()
        kernel = re.search(r"func\.func @(\w+)", text)
        assert kernel is not None, file
        counts[kernel[1]] = dict(collections.Counter(re.findall(r"= (tpu\.\w+)", text)))
    return counts


def main() -> None:
    """Compiles one program in this process: ``tpu_schedule.py FUNCTION ARGUMENTS FOLDER``."""
    from benchmarks import tpu_aot

    function, arguments, folder = sys.argv[1:]
    compiled = getattr(tpu_aot, function)(**json.loads(arguments))
    (Path(folder) / "program.hlo").write_text(compiled.as_text())


if __name__ == "__main__":
    main()
