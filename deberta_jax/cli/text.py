"""Prints text that may contain names from files."""

from deberta_jax.errors import printable_lines


def print_text(text: str) -> None:
    """Prints lines to standard output. Control characters, which could change the terminal, are escaped."""
    print(printable_lines(text))
