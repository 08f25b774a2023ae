"""``deberta-jax VERB ...``: finds the verb, reads its arguments, turns bad input into one line and exit code 2."""

import importlib
import io
import logging
import sys
from collections.abc import Sequence

import tyro

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.plugins import import_plugins

# Verb -> what it does; the module of that name in this package has Args and run.
VERBS = {
    "prepare": "text, jsonl and parquet to a directory of token shards, for pre-training",
    "pretrain": "pre-train on text: `pretrain mlm`, a masked language model; `pretrain rtd`, DeBERTa v3's way",
    "finetune": "fine-tune a model on a labelled file",
    "evaluate": "metrics of a model on a labelled file, as one JSON object",
    "predict": "labels and probabilities for a file of texts, as jsonl",
    "plan": "does a run fit on a TPU slice, what binds it, what does it cost: from the compiler, without the slice",
    "convert": "a checkpoint of any form to a model directory or an Orbax checkpoint",
    "inspect": "what a checkpoint holds and what it can be used for",
    "verify": "run a checkpoint, compare it with another, layer by layer",
    "bench": "tokens a second, utilisation, memory and compile time of training and prediction on this machine",
    "demo": "train, evaluate and predict in five minutes, from nothing but Python's own texts",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``deberta-jax``. Results go to standard output, messages to standard error."""
    storage.fill_standard_streams()
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("deberta_jax"))
        return
    if argv[0] not in VERBS:
        _fail(f"unknown command {argv[0]!r}; expected one of {', '.join(VERBS)}")
    show_messages()
    if sys.stdout is None:
        _fail("standard output is closed; results could not be written")
    _write_utf_8()
    _run(argv)


def _run(argv: list[str]) -> None:
    """Runs a command; an error of the user's becomes one line and an exit code."""
    try:
        argv = import_plugins(argv)
        command = importlib.import_module(f"deberta_jax.cli.{argv[0]}")
        command.run(command.parse(argv[1:]) if hasattr(command, "parse") else parse(command.Args, argv))
    except InputError as error:
        _fail(" ".join(str(error).split("\n")))
    except FloatingPointError as error:
        _fail(str(error), code=1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        _fail(storage.explain(error))
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


def parse(kind, argv: Sequence[str], default=None, description: str | None = None):
    """The arguments of a verb, given as ``[verb, ...]``, as the dataclass ``kind``."""
    options = {} if default is None else {"default": default}
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    prog = f"deberta-jax {argv[0]}"
    return tyro.cli(kind, args=list(argv[1:]), prog=prog, description=description, config=config, **options)


def show_messages() -> None:
    """Sends this package's messages, bare, to standard error; other libraries' only if they warn."""
    log = logging.getLogger("deberta_jax")
    log.setLevel(logging.INFO)
    # Some libraries set up the root logger when they are imported; a line must not come twice.
    log.propagate = False
    if not log.handlers:
        log.addHandler(_ToStandardError())


class _ToStandardError(logging.Handler):
    """Asks for the stream anew each time: a caller from Python may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _write_utf_8() -> None:
    """Makes results UTF-8 whatever the locale is, for they are read by programs; a terminal shows messages its way."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caller from Python may have replaced it
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    plugin = "--plugin MODULE, with any command, imports a Python module of yours that adds heads or kinds of task"
    first = "usage: deberta-jax COMMAND ...; `deberta-jax COMMAND --help` tells its arguments"
    return "\n".join([first, "", *lines, "", plugin])


def _fail(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
