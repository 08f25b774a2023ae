"""The one exception that means "the input is at fault, not the program"."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one line: it names the thing (file, column, field, tensor) and says what to do. The command line
    prints it after ``error:`` and exits with code 2; from Python it is an ordinary ``ValueError``.
    """
