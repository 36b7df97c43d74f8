"""Leaderboards that were never run: four rounds of two arrivals of ten datapoints, with losses of our choice."""

import json

import yaml

from ftml_bench.runs.definition import from_dict
from ftml_bench.runs.reading import HEADER
from ftml_bench.runs.record import RunWriter

CONTENT = {
    "name": "small",
    "seeds": [0, 1],
    "benchmarks": {
        "waves": {
            "benchmark": "Sinusoids",
            "steps": 5,
            "optimizer": {"name": "Adam"},
            "strategies": {"FTML": {}, "FromScratch": {}},
        }
    },
}
DEFINITION = from_dict(CONTENT, "small")


def changed(of_benchmark=(), /, **of_all):
    """The definition with other values, of its benchmark and of itself."""
    content = DEFINITION.to_dict() | of_all
    content["benchmarks"]["waves"] |= dict(of_benchmark)
    return from_dict(content, "small")


PROTOCOL = {
    "benchmark": "Sinusoids",
    "steps": 5,
    "optimizer": {"name": "Adam"},
    "version": 1,
    "benchmark_version": 1,
    "threshold": ["loss", 0.8],
    "metric": "loss",
    "checkpoints": [10],
    "arrivals": 10,
    "rounds": 4,
    "datapoints_per_round": 20,
    "held_out_per_round": 25,
}


def write_run(
    root,
    cell,
    losses,
    status="finished",
    *,
    definition=DEFINITION,
    measures=((0, "Regret", 0.5),),
    accuracy=None,
    **fields,
):
    """A cell of four rounds of two arrivals of 10; one loss an evaluation, and measures (round, name, value)."""
    protocol = PROTOCOL | {"strategy": cell.row}
    header = {"definition": definition.hash, "cell": str(cell), "device": "cpu", "protocol": protocol}
    writer = RunWriter.start(root / cell.folder, header)
    for i, loss in enumerate(losses):
        row = {"round": i // 2, "evaluated_round": i // 2, "datapoints": 10 + 10 * (i % 2), "loss": loss}
        writer.append(row | {"accuracy": accuracy, "steps": 5 * (i + 1), "gradient_evaluations": 50 * (i + 1)}, 0.5 * i)
    for measure in measures:
        writer.append_measure(*measure)
    writer.finish(status, cost={"steps": 5 * len(losses), "gradient_evaluations": 50 * len(losses)}, **fields)


def write_all(root, shift=0.0, *, definition=DEFINITION):
    """Every cell of the definition, each with losses of its own."""
    root.mkdir()
    content = yaml.safe_dump(definition.to_dict(), sort_keys=False)
    (root / "leaderboard.yaml").write_text(f"{HEADER}{definition.hash}\n{content}")
    for number, cell in enumerate(definition.cells()):
        worse = shift if cell.row == "FTML" else 0.0
        write_run(root, cell, [0.9 + worse + 0.01 * number, 0.5 + worse] * 4, definition=definition)
    return root


def edit(file, **changed):
    """Writes keys of a record anew; None takes one out."""
    content = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
