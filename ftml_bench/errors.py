"""Errors that are the user's to mend: one line, said before anything is run or written."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping


class UsageError(ValueError):
    """Bad input. The command line prints it as one line and exits with 2."""


def printable(text: str) -> str:
    """A text in one line without what a terminal would obey: control characters are written out, as \\x1b."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


def encodable(text: str) -> str:
    """A text as UTF-8 can hold it: halves of characters, as in the name of a file in another encoding, are written out.

    >>> print(encodable("data/\\udcff.png"))
    data/\\udcff.png
    """
    return text.encode("utf-8", "backslashreplace").decode()


def unknown(kind: str, name: object, names: Iterable[str], others: Mapping[str, str] | None = None) -> UsageError:
    """The error for a name that is not one of `names`: says what was expected and the nearest valid name.

    :param others: names that are known elsewhere, and how they are written here; they are suggested but not listed.
    """
    valid, others = sorted(names), others or {}
    near = _nearest(str(name), [*valid, *others])
    expected = f"expected one of: {', '.join(valid)}" if valid else "there is none"
    said = f"did you mean {others.get(near, near)!r}? ({expected})" if near else expected
    return UsageError(f"unknown {kind} {str(name)!r}: {said}")


def _nearest(name: str, known: list[str]) -> str:
    """The one that was meant, as far as can be told; empty if none is near."""
    given = name.lower()
    begun = [one for one in known if given and one.lower().startswith(given)]
    if begun:
        return min(begun, key=len)
    initials = "".join(word[:1] for word in given.split("_"))
    if len(initials) > 1 and initials in known:  # "learning_rate" for "lr"
        return initials
    # difflib would rather have a longer name with all of the letters in order than one in which two are swapped
    swapped = [one for one in known if sorted(one.lower()) == sorted(given)]
    return next(iter(swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.4)), "")


def is_whole(value: object) -> bool:
    """Whether it is a whole number; `True` is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a number; `True` is none, nor is a tensor."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_flag(value: object) -> bool:
    """Whether it is `True` or `False`."""
    return isinstance(value, bool)


def shown(value: object) -> str:
    """A value as it is written, in one line, the beginning of a long one."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def above_zero(**settings: float) -> None:
    """Refuses what is no finite number above 0."""
    for name, value in settings.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise UsageError(f"{name}={shown(value)}: expected a number above 0")


def at_least(least: int, **settings: int) -> None:
    """Refuses what is no whole number, and sizes below `least`."""
    for name, value in settings.items():
        if not is_whole(value):
            raise UsageError(f"{name}={shown(value)}: expected a whole number of at least {least}")
        if value < least:
            raise UsageError(f"{name}={value}: expected a number of at least {least}")
