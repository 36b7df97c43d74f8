"""Numbers of two versions of a stream, or of the protocol, do not stand in one report.

The `protocol` of a record says them: `benchmark_version` is the stream's, `version` the protocol's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ftml_bench.errors import UsageError

UNSAID = 1  # where a stream says no version, and in records from before there were any


def refuse_mixed(found: Iterable[tuple[str, Mapping[str, Any], object]]) -> None:
    """Sees that all are of one version of the protocol, and all of a benchmark of one version of its stream.

    :param found: the benchmark, the `protocol` of a record, and where that stands, for the message.
    :raises UsageError: the first that differs from one before it.
    """
    first: dict[str, tuple[Any, object]] = {}
    for benchmark, protocol, where in found:
        for what, key in (("the protocol", "version"), (benchmark, "benchmark_version")):
            version = UNSAID if protocol.get(key) is None else protocol[key]
            known, there = first.setdefault(what, (version, where))
            if version != known:
                raise UsageError(
                    f"{where} is of version {version} of {what}, {there} of version {known}: a report does not mix them"
                )
