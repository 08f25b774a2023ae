"""Two real processes that share no disk but the output: each tokenises its share of the rows, once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.made import rows, start
from tests.training.processes import curve, finish, port

pytestmark = pytest.mark.system

PLUGIN = """
import os
from pathlib import Path
from deberta_jax.data import stored_tables
from deberta_jax.tasks.text_classification import TextTask
from deberta_jax.training import finetune_data

stored_tables.LARGE_TABLE = 0
finetune_data.PART_ROWS = 10
features = TextTask.features

def counted(self, table, *arguments, **named):
    with open(Path(os.environ["COUNTED"]), "a") as file:
        file.write(f"{table.where(0).split('/')[-1]}\\n" * len(table))
    return features(self, table, *arguments, **named)

TextTask.features = counted
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, task) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "count_rows.py").write_text(PLUGIN)
    return folder


def lines_of(folder: Path, bad: tuple[int, ...] = ()) -> Path:
    """96 rows of text and label, of which the bad ones have no text."""
    path = folder / "train.jsonl"
    made = [{"sentence": None if i in bad else text, "kind": kind} for i, (text, kind) in enumerate(rows(96, seed=1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def begin(home, task, folder, train, cache, processes: int, caches: tuple[str, ...]):
    """Starts the processes of a run, each with its cache and with a file that counts its rows."""
    words = [*task.arguments(folder / "run", "--epochs", "1", "--log-every", "1"), "--train", str(train)]
    words += ["--mesh-data", str(processes), "--plugin", "count_rows"]
    told = ["--coordinator", f"localhost:{port()}", "--processes", str(processes)] if processes > 1 else []
    running = []
    for i in range(processes):
        settings = {"XDG_CACHE_HOME": str(folder / caches[i]), "COUNTED": str(folder / f"rows{i}"), **cache}
        settings["PYTHONPATH"] = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
        running.append(start([*words, *told, *(["--process", str(i)] if told else [])], **settings))
    return running


def counted(folder: Path, process: int) -> list[str]:
    """The parts that a process tokenised, by their first rows, a line for each row."""
    path = folder / f"rows{process}"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def tokens(folder: Path, cache: str) -> dict[str, bytes]:
    directory = folder / cache / "deberta_jax" / "tokens"
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.glob("*/*")
        if file.name != "checksums.json"
    }


@pytest.fixture(scope="module")
def single(home, task, cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    finish(begin(home, task, folder, lines_of(home), cache, 1, ("cache",)))
    assert len(counted(folder, 0)) == 96 + 40
    return folder


def test_each_tokenises_its_share_without_a_common_disk(home, task, cache, single, tmp_path):
    train = lines_of(home)
    finish(begin(home, task, tmp_path, train, cache, 2, ("one", "two")))
    ours, theirs = counted(tmp_path, 0), counted(tmp_path, 1)
    assert (len(ours), len(theirs)) == (50 + 20, 46 + 20), "training rows and rows to evaluate on"
    assert not set(ours) & set(theirs), "nothing is made twice"
    assert tokens(tmp_path, "one") == tokens(tmp_path, "two") == tokens(single, "cache")
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(single / "run"), rtol=1e-5)
    for name in ("one", "two"):
        assert len(list((tmp_path / name / "deberta_jax" / "tables").iterdir())) == 1
    # A process that has lost its cache gets everything again; the other one helps.
    (tmp_path / "one" / "deberta_jax").rename(tmp_path / "lost")
    (tmp_path / "run").rename(tmp_path / "first")
    finish(begin(home, task, tmp_path, train, cache, 2, ("one", "two")))
    assert len(counted(tmp_path, 0)) == 70
    assert len(counted(tmp_path, 1)) == 66
    assert tokens(tmp_path, "one") == tokens(tmp_path, "two")


def test_one_of_those_that_share_a_disk_writes(home, task, cache, single, tmp_path):
    train = lines_of(home)
    finish(begin(home, task, tmp_path, train, cache, 2, ("both", "both")))
    assert len(counted(tmp_path, 0) + counted(tmp_path, 1)) == 96 + 40
    assert tokens(tmp_path, "both") == tokens(single, "cache")
    (tmp_path / "run").rename(tmp_path / "first")
    finish(begin(home, task, tmp_path, train, cache, 2, ("both", "both")))
    assert counted(tmp_path, 0) == counted(tmp_path, 1) == []
    left = [path.name for path in (tmp_path / "both" / "deberta_jax").rglob(".*")]
    assert left == [], "trial files and what is half-written are gone"


@pytest.mark.parametrize("bad", [(15,), (5, 15), (15, 25)])
def test_the_first_bad_row_ends_all_processes_with_one_line(home, task, cache, tmp_path, bad):
    train = lines_of(tmp_path, bad)
    processes = begin(home, task, tmp_path, train, cache, 2, ("one", "two"))
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], told
    for text in told:
        (line,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert line == f"error: {train}, line {bad[0] + 1}: 'sentence' is None; a text is needed"
    assert not (tmp_path / "run").exists()
    assert tokens(tmp_path, "one") == tokens(tmp_path, "two") == {}
