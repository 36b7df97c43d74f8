"""Checks of what a user passes to a stream: one line that gives the number and what was expected."""

from __future__ import annotations

from typing import Any

from ftml_bench.errors import UsageError, is_whole


def check_int(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as a Python int, if it is a whole number from `least` to `most` (both included).

    :param name: the argument's name, for the message.
    :raises UsageError: if it is no whole number (`True` is none), or outside the range.
    """
    if not is_whole(value):
        raise UsageError(f"{name} {value!r}: expected a whole number")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise UsageError(f"{name} {number}: expected {least} or more" + ("" if most is None else f", {most} at most"))
    return number


def check_total(rounds: int, size_name: str, size: int, available: int, what: str) -> None:
    """Whether `rounds` rounds of `size` images each can be cut from `available` images without sharing any.

    :param size_name: the name of the argument that `size` was passed as.
    :param what: which images these are, for the message.
    :raises UsageError: if more are asked for than there are.
    """
    if rounds * size > available:
        raise UsageError(
            f"{rounds} rounds x {size_name} {size} = {rounds * size:,} images, but {what} has {available:,}: "
            f"{size_name} can be {available // rounds} at most"
        )
