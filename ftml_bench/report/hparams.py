"""The table of TensorBoard's HParams: a line a cell, of its row's settings and of what rows are compared by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

from ftml_bench.results.quantities import Quantity, quantities
from ftml_bench.results.statistics import BenchmarkResult
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.record import Run

Settings = dict[str, Any]  # name -> bool, number or text; of one name all are of one kind


def settings(runs: Mapping[Cell, Run]) -> dict[Cell, Settings]:
    """Each cell's row's settings, and what it was run on.

    Lists are written as JSON, and so are all values of a setting that is a number here and a text there. A setting that
    is None is left out.
    """
    found = {cell: _given(cell, run) for cell, run in runs.items()}
    for name in {name for one in found.values() for name in one}:
        having = [one for one in found.values() if name in one]
        if len({_kind(one[name]) for one in having}) > 1:
            for one in having:
                one[name] = one[name] if isinstance(one[name], str) else json.dumps(one[name])
    return found


def columns(results: Iterable[BenchmarkResult], rows: Iterable[Settings]) -> Summary.Value:
    """What the table has columns for."""
    values: dict[str, list[Any]] = {}
    for one in rows:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    titles: dict[str, list[str]] = {}  # an area is one of errors here, of losses there
    for result in results:
        for quantity in quantities(result):
            title = f"{quantity.title}, {quantity.judged.replace('_', ' ')}"
            titles.setdefault(tag(quantity), []).append(title)
    metrics = {name: " or ".join(dict.fromkeys(some)) for name, some in titles.items()}
    experiment = api_pb2.Experiment(
        hparam_infos=[_column(name, some) for name, some in values.items()],
        metric_infos=[summary_v2.Metric(name, display_name=title).as_proto() for name, title in metrics.items()],
    )
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    return Summary.Value(
        tag=metadata.EXPERIMENT_TAG, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR
    )


def line(values: Settings, name: str, started: float) -> Summary.Value:
    """A cell's settings. TensorBoard takes the mean of lines of one name.

    :param started: seconds since 1970.
    """
    # Not by `hparams.api`, whose function this is: to import that takes TensorFlow.
    return summary_v2.hparams_pb(values, trial_id=name, start_time_secs=started).value[0]


def tag(quantity: Quantity) -> str:
    """Of the scalar that has it: its name in `seeds.csv` over the part of the rounds over which rows are compared."""
    return f"results/{quantity.name}_{quantity.judged}"


def _given(cell: Cell, run: Run) -> Settings:
    protocol = run.record["protocol"]
    given = {
        "benchmark": cell.benchmark,
        "row": cell.row,
        "seed": cell.seed,
        "strategy": protocol.get("strategy"),
        "steps": protocol.get("steps"),
        **{f"optimizer.{name}": value for name, value in (protocol.get("optimizer") or {}).items()},
        **protocol.get("settings", {}),
    }
    plain = (bool, int, float, str)
    return {
        name: value if isinstance(value, plain) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def _column(name: str, values: Sequence[Any]) -> api_pb2.HParamInfo:
    """Of a setting; TensorBoard shows those first that differ between rows."""
    distinct, kind = sorted(set(values)), _kind(values[0])
    info = api_pb2.HParamInfo(name=name, type=kind, differs=len(distinct) > 1)
    if kind == api_pb2.DATA_TYPE_FLOAT64:
        info.domain_interval.min_value, info.domain_interval.max_value = distinct[0], distinct[-1]
    else:
        info.domain_discrete.extend(distinct)
    return info


def _kind(value: Any) -> int:
    """As TensorBoard counts them."""
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64
