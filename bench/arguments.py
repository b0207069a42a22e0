"""Types of arguments on the command line."""

from __future__ import annotations

import argparse
from typing import NoReturn


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """Return a whole number of at least 0."""
    return 0 if text == "0" else count(text)


def amount(text: str) -> float:
    """Return a number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return number


def positive(text: str) -> float:
    """Return a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with arguments: the usage, here, would bury it."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end the program."""
        self.exit(2, f"{self.prog}: {message} (--help shows what there is)\n")
