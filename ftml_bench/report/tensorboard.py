"""What TensorBoard shows of a leaderboard beside the curves that its cells have written: settings and results of every
cell, the mean of every row, the paper's panels, and pictures. Without PyTorch, and without TensorFlow.

Each lies in a file of its own, of one name, which takes the place of the one before.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean

from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from ftml_bench.files import replacing
from ftml_bench.metrics.measures import REGRET
from ftml_bench.report import figures, hparams
from ftml_bench.report.contents import Contents
from ftml_bench.results.cells import CellSummary
from ftml_bench.results.looks import Look, looks
from ftml_bench.results.quantities import quantities
from ftml_bench.results.statistics import BenchmarkResult
from ftml_bench.runs.appended import event_files
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.record import Run

FILE = "results.tfevents"  # after the cells' own: TensorBoard reads a folder's files in the order of their names
MEAN = "mean"  # the folder beside those of a row's seeds
PANELS = "The paper's panels"
APPROXIMATE = f"{REGRET}_Approximate"  # against a comparator, of which cells know nothing

Curves = dict[str, dict[int, float]]  # tag -> x -> value
Values = list[tuple[int, Summary.Value]]  # each with its x


def write(contents: Contents, root: Path) -> None:
    """Puts panels and pictures into the folder of every benchmark, settings and results into that of every cell that
    has ended, and beside a row's cells the mean of the curves of those that have finished.

    :param root: the leaderboard's folder.
    """
    look = looks(contents.definition.benchmarks)
    rows = {(result.spec.name, row.row.name) for result in contents.results for row in result.rows}
    runs = {cell: run for cell, run in contents.runs if run.ended and (cell.benchmark, cell.row) in rows}
    settings = hparams.settings(runs)
    # TensorBoard takes the first that it finds, so it may stand there for every benchmark.
    columns = hparams.columns(contents.results, settings.values())
    last = max(_time(run, "finished") for _, run in contents.runs)
    for result in contents.results:
        folder = root / result.spec.name
        _write(folder / FILE, last, [(0, value) for value in (columns, *_of_benchmark(result, look, root))])
        for row in result.rows:
            curves = []
            for seed in result.seeds:
                cell = Cell(result.spec.name, row.row.name, seed)
                if cell not in runs:
                    continue
                run, derived = runs[cell], {}
                if seed in row.cells:
                    regret = _regret(run, row.cells[seed])
                    curves.append(_read(root / cell.folder) | regret)
                    derived = regret | _results(result, row.cells[seed])
                name = f"{cell} ({contents.definition.name}, {run.record.get('started')})"
                line = hparams.line(settings[cell], name, _time(run, "started"))
                _write(root / cell.folder / FILE, _time(run, "finished"), [(0, line), *_scalars(derived)])
            _write(folder / row.row.name / MEAN / FILE, last, _scalars(_mean(curves)))


def _of_benchmark(result: BenchmarkResult, look: dict[str, Look], root: Path) -> Iterator[Summary.Value]:
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title=PANELS, chart=_panels(result))])
    yield Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    tasks = root / "figures" / f"{result.spec.name}-tasks.png"
    if tasks.is_file():
        yield _picture("Tasks", tasks.read_bytes())
    if result.threshold is not None:
        drawn = io.BytesIO()
        with figures.styled():
            figures.open_rounds(result, look).savefig(drawn, format="png")
        yield _picture("Rounds_Short_Of_Threshold", drawn.getvalue())


def _panels(result: BenchmarkResult) -> Iterator[layout_pb2.Chart]:
    """Charts of the curves that cells write. Those of several benchmarks are the same where their curves are, so that
    TensorBoard, which puts the layouts of all of them together, shows each once."""
    metric = {"error": "Accuracy", "loss": "Loss"}[result.measure]
    shown = result.checkpoints[:-1] if result.threshold is None else result.checkpoints[:1]
    tags = {} if result.threshold is None else {"Datapoints to γ, by round": "Datapoints_To_Threshold"}
    for checkpoint in shown:
        if checkpoint < result.checkpoints[-1]:
            tags[f"{metric} after {checkpoint} datapoints, by round"] = f"{metric}_At_{checkpoint}_Datapoints"
    tags[f"{metric} with all datapoints, by round"] = f"Final_{metric}"
    tags[f"{metric} over datapoints"] = f"{metric}_Over_Datapoints"
    if any(REGRET in cell.measures for row in result.rows for cell in row.cells.values()):
        if result.comparator:
            tags["Regret (approximate, against a comparator)"] = APPROXIMATE
        else:
            tags["Regret"] = REGRET
    for title, tag in tags.items():
        yield layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}(/|$)"]))


def _results(result: BenchmarkResult, cell: CellSummary) -> Curves:
    """What rows are compared by, after the last round."""
    found = {hparams.tag(quantity): quantity.over(quantity.judged)(cell) for quantity in quantities(result)}
    return {tag: {len(cell.rounds): value} for tag, value in found.items() if value is not None}


def _regret(run: Run, cell: CellSummary) -> Curves:
    """The regret against a comparator, by round, if there is one."""
    if REGRET in run.measures or REGRET not in cell.measures:
        return {}
    return {APPROXIMATE: {number + 1: value for number, value in cell.measures[REGRET].items()}}


def _mean(seeds: Sequence[Curves]) -> Curves:
    """The mean of several curves where all have a value; of one none, which it would hide."""
    if len(seeds) < 2:
        return {}
    found = {}
    for tag in seeds[0]:
        curves = [curves.get(tag, {}) for curves in seeds]
        known = sorted(set.intersection(*map(set, curves)))
        found[tag] = {x: fmean(curve[x] for curve in curves) for x in known}
    return found


def _read(folder: Path) -> Curves:
    """What a cell has written."""
    curves: Curves = {}
    for path in event_files(folder):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


def _scalars(curves: Curves) -> Values:
    return [
        (x, Summary.Value(tag=tag, simple_value=value)) for tag, curve in curves.items() for x, value in curve.items()
    ]


def _picture(tag: str, png: bytes) -> Summary.Value:
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    return Summary.Value(tag=tag, image=Summary.Image(width=width, height=height, encoded_image_string=png))


def _write(path: Path, time: float, values: Values) -> None:
    """Writes an event file of values that are all of one time; without any there shall be none."""
    if not values:
        path.unlink(missing_ok=True)
        return
    events = [Event(wall_time=time, step=x, summary=Summary(value=[value])) for x, value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        records = RecordWriter(file)
        for event in (Event(wall_time=time, file_version="brain.Event:2"), *events):
            records.write(event.SerializeToString())


def _time(run: Run, name: str) -> float:
    """When a run was "started" or "finished", in seconds since 1970; 0 if it does not say."""
    said = run.record.get(name)
    return datetime.fromisoformat(said).timestamp() if said else 0.0
