"""``deberta-jax COMMAND ...``: finds the command, parses its arguments, and reports errors as one line."""

import importlib
import io
import logging
import sys
from collections.abc import Sequence

import tyro

from deberta_jax import storage
from deberta_jax.errors import RUN_AGAIN, InputError, RunAgainError, printable, printable_lines
from deberta_jax.plugins import import_plugins
from deberta_jax.progress import take_progress_option

# Command -> what it does. The module of that name in this package has run, and Args or parse.
COMMANDS = {
    "prepare": "tokenize text, jsonl and parquet into a directory of shards, for pre-training",
    "pretrain": "pre-train on text: `pretrain mlm`, masked LM; `pretrain rtd`, replaced-token detection",
    "finetune": "fine-tune a model on a labelled file",
    "evaluate": "compute the metrics of a model on a labelled file, as one JSON object",
    "compare": "compare runs: settings that differ, metrics with mean and deviation over seeds, a plot",
    "predict": "write a model's answers for a file of any length, as jsonl, csv or parquet",
    "plan": "does a run fit on TPUs or GPUs, what limits it, what does it cost: from the compiler, without the devices",
    "preflight": "check devices, versions, mesh, output and clocks of all processes, before a run on many hosts",
    "serve": "answer requests over HTTP with models, and try them on a page",
    "convert": "convert a checkpoint of any form to a model directory or an Orbax checkpoint",
    "export": "write a model as ONNX or StableHLO, compared with the model",
    "quantize": "write a copy of a model with weights of 8 or 4 bits",
    "inspect": "show what a checkpoint holds and what it can be used for",
    "verify": "run a checkpoint, compare it with another, layer by layer",
    "bench": "measure throughput, utilisation, memory and compile time of training and prediction on this machine",
    "demo": "train, evaluate and predict in five minutes, on text that comes with Python",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``deberta-jax``. Results go to standard output, messages to standard error.

    Args:
      argv: the arguments; those of the process if not given.

    Raises:
      SystemExit: 2 where the user has to change something, 42 (``errors.RUN_AGAIN``) where the same command goes on
        when it is run again, 128 + signal for a run that a signal stopped, 1 for a failure that nobody foresaw.
    """
    storage.fill_standard_streams()
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("deberta_jax"))
        return
    if argv[0] not in COMMANDS:
        _fail(f"unknown command {argv[0]!r}; expected one of {', '.join(COMMANDS)}")
    show_messages()
    if sys.stdout is None:
        _fail("standard output is closed; results could not be written")
    _write_utf_8()
    _run(argv)


def _run(argv: list[str]) -> None:
    """Runs a command; turns errors into one line and an exit code."""
    try:
        argv = take_progress_option(import_plugins(argv))
        command = importlib.import_module(f"deberta_jax.cli.{argv[0]}")
        command.run(command.parse(argv[1:]) if hasattr(command, "parse") else parse(command.Args, argv))
    except InputError as error:
        _fail(" ".join(str(error).split("\n")))
    except FloatingPointError as error:
        _fail(str(error))
    except RunAgainError as error:
        _fail(str(error), code=RUN_AGAIN)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        known = storage.client_error(error)
        _fail(str(known or storage.explain(error)), code=RUN_AGAIN if storage.may_pass(error) else 2)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except Exception as error:
        known = storage.client_error(error)
        if known is None:
            raise
        _fail(str(known), code=RUN_AGAIN if isinstance(known, RunAgainError) else 2)


def parse(kind, argv: Sequence[str], default=None, description: str | None = None):
    """Returns the arguments ``[command, ...]`` as the dataclass ``kind``."""
    options = {} if default is None else {"default": default}
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    prog = f"deberta-jax {argv[0]}"
    return tyro.cli(kind, args=list(argv[1:]), prog=prog, description=description, config=config, **options)


def show_messages() -> None:
    """Sends this package's log messages to standard error as they are; of other libraries only warnings."""
    log = logging.getLogger("deberta_jax")
    log.setLevel(logging.INFO)
    # Some libraries set up the root logger when they are imported; then every line would appear twice.
    log.propagate = False
    if not log.handlers:
        log.addHandler(_ToStandardError())
    # Orbax's tasks that fail are reported by the error that ends the run; asyncio would print their tracebacks too.
    # gcsfs logs each failure with its traceback too, before it raises the error.
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _ToStandardError(logging.Handler):
    """Writes to the present ``sys.stderr``, which a caller from Python may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable_lines(self.format(record)), file=sys.stderr)


def _write_utf_8() -> None:
    """Makes standard output UTF-8 for any locale, because programs read it."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caller from Python may have replaced it
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def usage() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    plugin = "--plugin MODULE, with any command, imports a Python module of yours that adds heads or kinds of task"
    progress = "--progress auto|bar|lines|none: auto is a bar in a terminal, and elsewhere a line every ten seconds"
    first = "usage: deberta-jax COMMAND ...; `deberta-jax COMMAND --help` lists its arguments"
    return "\n".join([first, "", *lines, "", plugin, progress])


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
