"""Small made-up runs whose tables are counted by hand."""

import math

import yaml

from ftml_bench.runs import definition as definitions
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import RunWriter

CONTENT = {
    "name": "small",
    "description": "a < b & c",
    "seeds": [0, 1, 2],
    "benchmarks": {
        "digits": {
            "benchmark": "RainbowDigits",
            "steps": 5,
            "optimizer": {"name": "Adam"},
            "strategies": {
                "FTML": {},
                "Scratch x10": {"strategy": "FromScratch", "step_factor": 10},
                "FromScratch": {},
            },
        }
    },
}

# Accuracies at 10 and at 20 (= N) datapoints of four rounds; γ = 80 %.
FTML = [
    [(0.5, 0.7), (0.5, 0.8), (0.8, 0.9), (0.9, 0.9)],  # datapoints to γ: 20 (censored), 20, 10, 10
    [(0.8, 0.8), (0.5, 0.5), (0.5, 0.7), (0.8, 0.6)],  # 10, 20 (censored), 20 (censored), 10
]

FROM_SCRATCH = [
    [(0.5, 0.7)] * 4,  # 20 in all, censored
    [(0.5, 0.7)] * 3 + [(0.8, 0.8)],  # 20, 20, 20, 10
    [(0.5, 0.7)] * 4,
]

HASH = definitions.from_dict(CONTENT, "small").hash


def write_run(folder, rounds, *, status="finished", metric="accuracy", judged=True, definition=HASH, **fields):
    """A run of arrivals of 10; `rounds` holds a performance for each arrival of each round."""
    protocol = {
        "threshold": [metric, 0.8] if judged else None,
        "metric": metric,
        "checkpoints": [10],
        "rounds": 4,
        "datapoints_per_round": 20,
        "batch_norm": "support",
    }
    writer = RunWriter.start(folder, {"definition": definition, "protocol": protocol})
    steps = 0
    for number, values in enumerate(rounds):
        for arrival, value in enumerate(values, 1):
            steps += 5
            row = {
                "round": number,
                "evaluated_round": number,
                "datapoints": 10 * arrival,
                "loss": 1.5 if metric == "accuracy" else value,
                "accuracy": value if metric == "accuracy" else None,
                "steps": steps,
                "gradient_evaluations": 31_000 * steps,
            }
            writer.append(row, 0.5 * steps)
            if number > 0:  # an earlier round, evaluated as well: no part of any table
                writer.append(row | {"evaluated_round": 0, "accuracy": 1.0, "loss": 0.0}, 0.5 * steps)
    writer.finish(status, **fields)


def made_in(tmp_path):
    """FTML's seed 2 diverged in the third round, no cell of "Scratch x10" is there."""
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "leaderboard.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    for row, seeds in {"FTML": FTML, "FromScratch": FROM_SCRATCH}.items():
        for seed, rounds in enumerate(seeds):
            write_run(folder / f"digits/{row}/seed-{seed}", rounds)
    write_run(folder / "digits/FTML/seed-2", [*FTML[0][:2], (math.nan,)], status="diverged", diverged_round=2)
    return folder


def line(text, name, heading):
    """The cells of a row in the table below a heading of the Markdown."""
    below = text.split(f"### {heading}\n")[1]
    found = next(line for line in below.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in found.replace("\u00a0", " ").strip("|").split("|")]


def read(root):
    definition, runs, _ = read_runs(root)
    return definition, runs, root
