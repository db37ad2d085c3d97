"""Prints to standard output, whose reader may have gone or whose disk may be full."""

import errno
import os
import sys
from collections.abc import Sequence

import click


class OutputError(click.ClickException):
    """Standard output cannot be written. A closed pipe, as of `| head -1`, needs no message."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"Cannot write the output: {error.strerror}.")
        self._closed = error.errno == errno.EPIPE

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print the message to standard error, unless the reader has closed the pipe."""
        if not self._closed:
            super().show()


def echo(text: str = "", *, nl: bool = True) -> None:
    """Print a text and flush it.

    Raises:
        OutputError: it cannot be written. Later texts are discarded.
    """
    try:
        click.echo(text, nl=nl)
    except OSError as error:
        # Python flushes the rest when it exits. That would fail again, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(error) from None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
