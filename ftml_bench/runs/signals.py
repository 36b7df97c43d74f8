"""SIGTERM (of a supervisor, of `timeout`) and SIGHUP (of a terminal that is closed) stop a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal came that ends a process."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Inside, they raise `Stopped`; but for one that is ignored, as by `nohup`, or that has a handler."""
    before = {}
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():  # only there can they be
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has not both
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if came and not isinstance(error, Stopped):  # a library has said it in its own way
            raise Stopped(came[-1]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def put_off() -> Iterator[None]:
    """Inside, signals that end a process wait for the end of the block, as for that of an import.

    An exception in the middle of the import of a compiled module leaves it half made: others then fail in it, or crash.
    """
    before = {}
    came: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in ENDING if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
