"""What a benchmark says of itself is of the kind that a leaderboard takes, whatever it says: it may be somebody
else's."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ftml_bench.errors import UsageError
from ftml_bench.runs import fields
from ftml_bench.runs.definition import BenchmarkSpec, Measure, Threshold
from ftml_bench.runs.fields import OneOrSeveral, Rate, Size, expected
from ftml_bench.runs.values import shown

_STREAMS = ("train_stream", "test_stream")


class _Said(fields.Model):
    """The defaults of what a definition does not say."""

    threshold: Threshold | None = None
    checkpoints: Annotated[tuple[Size, ...], Field(strict=True), expected("a list of numbers of datapoints")] = ()
    arrivals: OneOrSeveral[Size] = 1
    measures: Annotated[tuple[Measure, ...], Field(strict=True), expected("a list of names")] = ()
    inner_lr: Rate | None = None
    update_steps: Size | None = None


_ASKED = (*_STREAMS, "criterion", *(name for name in _Said.model_fields if name != "measures"))


def check(benchmark: Any, where: str, spec: BenchmarkSpec | None = None) -> None:
    """Sees that a benchmark has its streams and a criterion, and that its defaults can be used.

    :param where: named in the error.
    :param spec: what a definition says; the benchmark's own is not looked at there.
    :raises UsageError: it has not, or a default is of another kind; names the attribute.
    """
    for name in _ASKED:
        if not hasattr(benchmark, name):
            raise UsageError(f"{where}: a {type(benchmark).__name__} has no {name!r}: expected a benchmark")
    for name in _STREAMS:
        stream = getattr(benchmark, name)
        if not isinstance(stream, Sized):
            raise UsageError(f"{where}: its {name}: expected a stream of rounds, got {shown(stream)}")
        if not len(stream):
            raise UsageError(f"{where}: its {name} has no rounds")
    data, held_out = (len(getattr(benchmark, name)) for name in _STREAMS)
    if data != held_out:
        raise UsageError(f"{where}: {data} rounds of data, {held_out} of held-out data: expected as many")
    if not callable(benchmark.criterion):
        raise UsageError(f"{where}: its criterion: expected a loss, got {shown(benchmark.criterion)}")
    said = {
        name: _plain(getattr(benchmark, name))
        for name in _Said.model_fields
        if hasattr(benchmark, name) and getattr(spec, name, None) is None
    }
    try:
        _Said.model_validate(said)
    except ValidationError as error:
        raise UsageError(f"{where}: its {fields.in_words(error, said)}") from None


def _plain(value: Any) -> Any:
    """Of a list, or a range, a tuple."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
