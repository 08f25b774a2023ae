"""Answers files of any length: reads, computes and writes them in parts, alone or as one of several processes."""

import dataclasses
import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from deberta_jax import storage
from deberta_jax.data.features import Features, LongTexts
from deberta_jax.data.files import matching_files, stored_file
from deberta_jax.data.streaming import Part
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.answer_files import answer_format
from deberta_jax.inference.loaded import Loaded
from deberta_jax.inference.trained import TrainedOptions, check_overwrites_nothing, load_for_table, task_name
from deberta_jax.tasks import NonFinite, Task
from deberta_jax.tasks.parts import task_parts
from deberta_jax.weights.opening import model_directories

T = TypeVar("T")

_ROWS = 2048
"""Rows that are read, sorted by length, computed and written together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(TrainedOptions):
    """Holds the options for answering files."""

    input: str
    """File as ``finetune`` reads it, or a pattern of several; - reads jsonl on standard input."""
    output: str
    """File to write: .csv and .parquet in these formats, every other as jsonl; - writes jsonl to standard output."""
    non_finite: NonFinite = "refuse"
    """What is done with a model with weights that are NaN or infinite, and with rows whose scores are: refuse them, or
    write null for such rows."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Says which part of the work a process does: number ``process`` of ``processes``, counted from 0.

    Raises:
      InputError: there is no such process.
    """

    process: int = 0
    processes: int = 1

    def __post_init__(self):
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"--process {self.process} --processes {self.processes}: give the number of processes, and to each its "
                "own number from 0 on"
            )

    def output(self, name: str) -> str:
        """Returns the name of this process's part of a file: ``answers-00000-of-00004.jsonl``."""
        if self.processes == 1:
            return name
        path = Path(name)
        return storage.beside(name, f"{path.stem}-{self.process:05d}-of-{self.processes:05d}{path.suffix}")

    def index(self, name: str) -> str:
        """Returns the name of the file that lists all parts: ``answers.index.json``."""
        return storage.beside(name, f"{Path(name).stem}.index.json")


Told = Callable[[int, int], object]


def predict(o: PredictOptions, *, dtype: Any, share: Share, progress: Told | None = None) -> None:
    """Writes a model's answers for a file: one object for each row, in the order of the file.

    Memory does not grow with the file. A process that is killed leaves the answers that it has computed, and the same
    command goes on with them; its output is then the same. Of several processes each writes the answers for
    consecutive rows to a file of its own; an index lists these files, and says when all of them are complete.

    Args:
      o: the options.
      dtype: dtype of the computation.
      share: the part of this process.
      progress: is called with the numbers of texts and tokens of each batch when it is done.

    Raises:
      InputError: the model, a file, a column or a number cannot be used, or the output cannot be written.
    """
    if share.processes > 1 and ("-" in (o.output, o.input) or storage.is_stream(o.input)):
        raise InputError("--processes: needs files for --input and --output; a stream is read by one process")
    if share.processes > 1 and storage.is_remote(o.output):
        raise InputError(f"--output {o.output}: --processes needs a disk that all share; give a local path")
    output = share.output(o.output)
    finish = answer_format(o.output)
    storage.check_output_file("--output", output)
    written = [Share(process, share.processes).output(o.output) for process in range(share.processes)]
    for name in (*written, *([share.index(o.output)] if share.processes > 1 else [])):
        check_overwrites_nothing("--output", name, o.input, o.model)
    command = _command(o, dtype)
    with storage.resumable_lines("--output", output, command | {"share": dataclasses.astuple(share)}, finish) as lines:
        task = task_name(o)
        parts = task_parts(task, o.input, o.delimiter, rows=max(_ROWS, o.batch_size))
        first = next(parts, None)
        if first is None:
            raise InputError(f"{o.input}: no rows; the file is empty")
        trained, model, _ = load_for_table(
            o, task, first.table(), dtype=dtype, labelled=False, non_finite=o.non_finite, local=share.processes > 1
        )
        counts = None
        if share.processes > 1:
            counts = _counts(task, o)
            _mark(o.output, command, counts, share, done=False)
        mine = _share(itertools.chain([first], parts), counts, share)
        _write_answers(_skip(mine, lines), lines, trained, model, o.input, progress)
    if counts is not None:
        _mark(o.output, command, counts, share, done=True)


def _command(o: PredictOptions, dtype: Any) -> dict[str, Any]:
    """Returns what the answers depend on: options, inputs and model, with sizes and times of their files.

    An input without such a file, as a stream, is never the same twice.
    """
    names = {field.name for field in dataclasses.fields(PredictOptions)} - {"output"}
    options = {name: getattr(o, name) for name in sorted(names)}
    folders = model_directories(o.model, base_model=o.base_model)
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    inputs = [stored_file(path) for path in ([o.input] if o.input == "-" else matching_files(o.input))]
    found = [(str(file), *_state(file)) for file in (*inputs, *files) if file is not None]
    return {
        "version": version("deberta_jax"),
        "options": options,
        "dtype": str(dtype),
        "files": found,
        "once": secrets.token_hex() if None in inputs else "",
    }


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _counts(task: str, o: PredictOptions) -> list[int]:
    """Returns the numbers of rows of all parts of the input, which are not parsed for it."""
    return [part.rows for part in task_parts(task, o.input, o.delimiter, rows=max(_ROWS, o.batch_size))]


def _bounds(counts: list[int], share: Share) -> list[int]:
    """Returns the first part of every process, and the number of parts."""
    return [len(counts) * process // share.processes for process in range(share.processes + 1)]


def _share(parts: Iterator[Part], counts: list[int] | None, share: Share) -> Iterator[Part]:
    if counts is None:
        return parts
    start, end = _bounds(counts, share)[share.process : share.process + 2]
    return itertools.islice(parts, start, end)


def _skip(parts: Iterator[Part], lines: storage.Lines) -> Iterator[Part]:
    """Yields the parts that are not answered yet. Answers of a part that was interrupted are computed again."""
    done = 0
    while (part := next(parts, None)) is not None and done + part.rows <= lines.count:
        done += part.rows
    lines.keep(done)
    if part is not None:
        yield part
        yield from parts


def _write_answers(
    parts: Iterator[Part], lines: storage.Lines, task: Task, model: Loaded, name: str, progress: Told | None
) -> None:
    """Computes and writes the answers to all rows. The tokens of a part are made while the one before is computed."""
    long = LongTexts()

    def tokens(part: Part) -> tuple[Table, Features]:
        table = part.table()
        return table, model.features_of(task, table, labelled=False)

    for table, features in _ahead(parts, tokens):
        long.add(features)
        told = _told(features, progress)
        answers = model.answers_to(task, table, features, told)
        lines.write("".join(_line(answer) for answer in answers))
    model.log_long(name, long)


def _told(features: Features, progress: Told | None) -> Callable[[int], object] | None:
    """Returns the function that the predictor calls with the number of texts of each batch, longest first."""
    if progress is None:
        return None
    ends = iter(sorted(features.lengths.tolist(), reverse=True))
    return lambda texts: progress(texts, sum(itertools.islice(ends, texts)))


def _line(answer: dict[str, Any]) -> str:
    try:
        return json.dumps(answer, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise InputError(f"an answer has a number that is not finite ({error})") from None


def _ahead(items: Iterator[Part], make: Callable[[Part], T]) -> Iterator[T]:
    """Yields what ``make`` makes of each item; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1, "deberta_jax-tokens") as pool:
        waiting = None
        for item in items:
            made, waiting = waiting, pool.submit(make, item)
            if made is not None:
                yield made.result()
        if waiting is not None:
            yield waiting.result()


def _mark(output: str, command: dict[str, Any], counts: list[int], share: Share, *, done: bool) -> None:
    """Says in the index of all parts whether that of this process is written.

    The index of another command, whose parts may still be there, is replaced.
    """
    bounds = _bounds(counts, share)
    files = [
        {"file": Path(Share(process, share.processes).output(output)).name, "rows": sum(counts[start:end])}
        for process, (start, end) in enumerate(itertools.pairwise(bounds))
    ]
    name = hashlib.sha256(json.dumps(command, sort_keys=True).encode()).hexdigest()

    def marked(found: Any) -> Any:
        same = isinstance(found, dict) and found.get("command") == name and isinstance(found.get("files"), list)
        before = {entry.get("file") for entry in found["files"] if entry.get("written")} if same else set()
        own = files[share.process]["file"]
        written = before | {own} if done else before - {own}
        entries = [file | {"written": file["file"] in written} for file in files]
        return {
            "complete": all(entry["written"] for entry in entries),
            "rows": sum(counts),
            "files": entries,
            "command": name,
        }

    storage.change_json(Path(share.index(output)).expanduser(), marked)
