"""Tries whether a directory or a bucket can be written, by writing."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deberta_jax.errors import InputError, RunAgainError
from deberta_jax.storage.files import make_directory, remove, write_bytes
from deberta_jax.storage.outputs import check_output_directory
from deberta_jax.storage.paths import as_path, explain, is_remote, may_pass, reaching


@contextmanager
def trial_file(option: str, directory: str, name: str) -> Iterator[None]:
    """Writes a small file into a directory or a bucket and reads it back; removes it after the block.

    A local directory that does not exist is made, and removed with the file.

    Args:
      option: the option that the directory was given by, for messages.
      directory: a local path, or a URL such as gs://bucket/directory.
      name: name of the file, which does not exist yet.

    Raises:
      InputError: the directory cannot be written, or does not return what was written.
      RunAgainError: it cannot be reached now.
    """
    content = secrets.token_hex(8).encode()
    with contextlib.ExitStack() as stack:
        if is_remote(directory):
            target = f"{directory.rstrip('/')}/{name}"
            with reaching(target) as path:
                stack.callback(remove, path)
                path.write_bytes(content)
                returned = path.read_bytes()
        else:
            check_output_directory(option, directory)
            local = Path(directory).expanduser()
            made = [path for path in (local, *local.absolute().parents) if not path.exists()]
            try:
                stack.callback(_remove_empty, made)
                make_directory(local)
                stack.callback(remove, local / name)
                write_bytes(local / name, content)
                returned = (local / name).read_bytes()
            except OSError as error:
                kind = RunAgainError if may_pass(error) else InputError
                raise kind(f"{option} {explain(error)}") from None
        if returned != content:
            raise InputError(f"{option} {directory}: does not return what was written; give another directory")
        yield


def sees_trial_file(directory: str, name: str) -> bool:
    """Returns whether a directory or a bucket has the file that another process's ``trial_file`` wrote.

    Raises:
      InputError, RunAgainError: a bucket cannot be reached.
    """
    with reaching(as_path(directory) / name) as path:
        return path.is_file()


def _remove_empty(directories: list[Path]) -> None:
    """Removes directories, the innermost first. One that holds anything by now stays."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()
