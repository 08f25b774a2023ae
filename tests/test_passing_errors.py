"""Which errors of disks, networks and buckets may be over when the same command is run again, and which stay."""

import errno

import pytest

from deberta_jax import storage
from deberta_jax.cli import main as command_line
from deberta_jax.errors import InputError, RunAgainError


class HttpError(Exception):
    """As the clients of buckets raise it: with a status."""

    def __init__(self, code: int):
        super().__init__(f"status {code}")
        self.code = code


PASSING = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    TimeoutError("no answer"),
    OSError("Cannot connect to host"),  # of a client, without a number
    OSError(errno.ESTALE, "stale"),
    OSError(errno.EIO, "failed"),
    HttpError(503),
    HttpError(429),
]
STAYING = [
    PermissionError(errno.EACCES, "denied"),
    FileNotFoundError(errno.ENOENT, "nothing"),
    OSError(errno.ENOSPC, "full"),
    HttpError(403),
    HttpError(404),
    RuntimeError("no credentials"),
]


@pytest.mark.parametrize("error", [*PASSING, *STAYING], ids=repr)
def test_a_bucket_that_cannot_be_reached(error):
    expected = RunAgainError if error in PASSING else InputError
    with pytest.raises(expected, match="gs://bucket/a: ") as caught, storage.reaching("gs://bucket/a"):
        raise error
    assert "\n" not in str(caught.value)
    assert storage.may_pass(error) == (error in PASSING)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("--text: no such column"), 2),
        (FloatingPointError("the run has diverged"), 2),
        (RunAgainError("a process\nis gone"), 42),
        (OSError(errno.EIO, "failed", "/data/train.csv"), 42),
        (OSError(errno.ENOSPC, "full", "/data/run"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_exit_codes_say_whether_to_run_again(error, code, monkeypatch, capsys):
    def run(_):
        raise error

    monkeypatch.setattr("deberta_jax.cli.compare.run", run)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["compare", "a", "b"])
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
