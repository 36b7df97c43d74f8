"""What stands in a record is of the kind that reports expect, whatever it says: it may come from somebody else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from ftml_bench.errors import UsageError
from ftml_bench.runs import fields
from ftml_bench.runs.definition import Metric, Threshold
from ftml_bench.runs.fields import Seed, Several, Size, Text
from ftml_bench.runs.values import shown

_Keys = Annotated[dict[str, Any], fields.expected("keys with values")]
_Count = Annotated[
    float, Field(ge=0, allow_inf_nan=False, strict=True), fields.expected("a finite number, not below 0")
]


def _time(text: Any) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):  # no time, or none that this machine can count
        raise ValueError(f"expected a time in ISO 8601, got {shown(text)}") from None
    return text


_Date = Annotated[str, BeforeValidator(_time)]


class _Protocol(fields.Model):
    model_config = ConfigDict(extra="allow")

    metric: Metric | None = None
    threshold: Threshold | None = None
    checkpoints: Several[Size] | None = None
    rounds: Size | None = None
    datapoints_per_round: Size | None = None
    settings: _Keys = {}
    benchmark_settings: _Keys = {}
    optimizer: _Keys = {}


class _Record(fields.Model):
    model_config = ConfigDict(extra="allow")

    protocol: _Protocol = _Protocol()
    versions: _Keys = {}
    cost: Annotated[dict[str, _Count | None], fields.expected("keys with numbers")] = {}
    started: _Date | None = None
    resumed: Annotated[list[_Date], fields.expected("a list of times")] = []
    finished: _Date | None = None
    reason: Text = ""
    diverged_round: Seed | None = None  # a whole number, from 0


def check(record: dict[str, Any], file: Path) -> None:
    """Sees that what the record of a run says is of the right kind; of one that failed or runs anything may be missing.

    :raises UsageError: it is not; names `file`, where it lies.
    """
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{file}: damaged: {fields.in_words(error, record)}") from None
