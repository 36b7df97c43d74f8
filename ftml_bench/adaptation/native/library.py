"""The compiled part: which of its forms this processor takes, and its face. Absent where it has not been built."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

FORMS = ("baseline", "avx2", "avx512")  # each for the processors of the ones before, too
NO_MEMORY, CALLBACK_FAILED = 1, 2
CROSS_ENTROPY, SQUARED_ERROR, CALLED_BACK = range(3)
Callback = CFUNCTYPE(c_int, c_int64, c_int64, c_void_p, c_void_p, c_void_p)


class Job(ctypes.Structure):
    """What is asked for; the fields of `src/job.hpp`, in the same order."""

    _fields_ = [
        ("input", c_void_p),
        ("nops", c_int64),
        ("ops", c_void_p),
        ("reals", c_void_p),
        ("nparameters", c_int64),
        ("shapes", c_void_p),
        ("wants_x", c_int64),
        ("tasks", c_int64),
        ("steps", c_int64),
        ("support", c_int64),
        ("query", c_int64),
        ("rides", c_int64),
        ("second_order", c_int64),
        ("clip", c_double),
        ("wants_rates", c_int64),
        ("nrates", c_int64),
        ("rates", c_void_p),
        ("loss", c_int64),
        ("targets", c_void_p),
        ("class_weights", c_void_p),
        ("smoothing", c_double),
        ("ignore", c_int64),
        ("is_mean", c_int64),
        ("callback", Callback),
        ("backward", c_int64),
        ("threads", c_int64),
        ("weights", c_void_p),
        ("weight_steps", c_void_p),
        ("x", c_void_p),
        ("query_x", c_void_p),
        ("outputs", c_void_p),
        ("cotangent", c_void_p),
        ("kept", c_void_p),
        ("tapes", c_void_p),
        ("taped", c_int64),
        ("gradients", c_void_p),
        ("gradient_x", c_void_p),
        ("gradient_query", c_void_p),
        ("statistics", c_void_p),
        ("gradient_rates", c_void_p),
        ("adapted", c_void_p),
    ]


class NotBuiltError(Exception):
    """Why there is no library."""


@cache
def library() -> ctypes.CDLL:
    """The library in the form that is fastest on this processor.

    :raises NotBuiltError: if none has been built.
    """
    if not built("baseline"):
        raise NotBuiltError("has not been built here, for want of a C++ compiler (pip install builds it)")
    best = load("baseline").native_best().decode()
    for form in reversed(FORMS[: FORMS.index(best) + 1]):
        if built(form):
            return load(form)
    raise AssertionError


def built(form: str) -> Path | None:
    """The file of a form, if there is one."""
    files = (Path(__file__).with_name(f"_{form}{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


def load(form: str) -> ctypes.CDLL:
    """The library in one of the forms that have been built.

    :raises OSError: if it cannot be loaded.
    """
    loaded = ctypes.CDLL(str(built(form)))
    loaded.native_run.argtypes = [POINTER(Job), c_int]
    loaded.native_sizes.argtypes = [POINTER(Job), c_int, POINTER(c_int64)]
    loaded.native_sizes.restype = None
    loaded.native_best.restype = c_char_p
    return loaded
