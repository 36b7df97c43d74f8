"""Real leaderboards in TensorBoard itself: three below one folder, asked as its pages ask it."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from itertools import accumulate
from urllib.request import Request, urlopen

import pytest

from ftml_bench import report
from ftml_bench.runs import pool, schedule
from ftml_bench.runs.definition import from_dict
from tests.report.test_tensorboard import charts, scalars

OF_TENSORBOARD = (  # its own, and what it imports has to say
    r"TensorBoard \S+ at http://\S+ \(Press CTRL\+C to quit\)",
    r"TensorFlow installation not found - running with reduced feature set\.",
    r"NOTE: Using experimental fast data loading logic\. To disable, pass",
    r'    "--load_fast=false" and report issues on GitHub\. More details:',
    r"    https://github\.com/tensorflow/tensorboard/issues/4784",
    r"TensorBoard caught SIGTERM; exiting\.\.\.",
    r"",
)
GROUPS = {
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "aggregationType": "AGGREGATION_AVG",
    "startIndex": 0,
    "sliceSize": 100,
}


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Two rounds of sinusoids in three arrivals, with regret against a comparator; and copies."""
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2, "images_per_round": 12, "held_out_per_round": 20},
        "arrivals": 4,
        "checkpoints": [4, 12],
        "measures": ["regret"],
        "steps": 2,
        "optimizer": {"name": "Adam", "lr": 0.003},
        "strategies": {
            "FTML": {"meta_batch_size": 2, "update_steps": 2},
            "FromScratch": {"train_mb_size": 10},
            "in hindsight": {"strategy": "FTML", "meta_batch_size": 2, "update_steps": 2, "comparator": True},
        },
    }
    folder = tmp_path_factory.mktemp("boards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads
        definition = from_dict({"name": "tiny", "seeds": [0, 1], "benchmarks": {"waves": entry}}, "tiny")
        schedule.run_cells(definition, folder / "a", jobs=1, data=None, quiet=True)
    report.write(folder / "a")
    for name in "bc":
        shutil.copytree(folder / "a", folder / name)
    return folder


def test_every_panel_has_curves(boards):
    cells, mean = scalars(boards / "a/waves/FTML/seed-0"), scalars(boards / "a/waves/FTML/mean")
    tags = [tag for some in charts(boards / "a/waves").values() for tag in some]
    assert len(tags) == 5
    for tag in tags:
        assert [name for name in cells if re.match(tag, name)] == [name for name in mean if re.match(tag, name)]
        assert len([name for name in cells if re.match(tag, name)]) == 1
    assert list(cells["Final_Loss/eval_phase/test_stream"]) == [1, 2]
    assert list(cells["Loss_Over_Datapoints/eval_phase/test_stream"]) == [4, 8, 12, 16, 20, 24]


def test_the_regret_against_a_comparator_is_there(boards):
    root = boards / "a/waves"
    with (root / "FTML/seed-0/measures.csv").open() as file:
        own = [float(row["value"]) for row in csv.DictReader(file) if row["measure"] == "Loss_Of_Round"]
    with (root / "in hindsight/seed-0/curve.csv").open() as file:
        best = [float(row["loss"]) for row in csv.DictReader(file)]
    regret = dict(enumerate(accumulate(a - b for a, b in zip(own, best, strict=True)), 1))
    assert scalars(root / "FTML/seed-0")["Regret_Approximate"] == pytest.approx(regret)


def test_three_boards_in_tensorboard(boards):
    """It starts without a line that is not its own, and shows every run, setting and panel once."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(boards), "--host", "localhost", "--port", "0"]
    log = boards / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            address = _when(lambda: re.search(r"http://\S+", log.read_text()))[0]
            cells = [f"waves/{row}/seed-{seed}" for row in ("FTML", "FromScratch") for seed in (0, 1)]
            means = [f"waves/{row}/mean" for row in ("FTML", "FromScratch")]
            comparators = [f"waves/in hindsight/seed-{seed}" for seed in (0, 1)]
            runs = [f"{board}/{run}" for board in "abc" for run in ["waves", *cells, *means, *comparators]]
            _when(lambda: set(_asked(f"{address}data/runs")) == set(runs))
            (category,) = _when(lambda: _asked(f"{address}data/plugin/custom_scalars/layout"))["category"]
            assert len(category["chart"]) == 5
            sessions = {f"{board}/{cell}": 5 for board in "abc" for cell in cells}
            _when(lambda: _metrics(address) == sessions)
        finally:
            process.terminate()
    lines = log.read_text().splitlines()
    assert [line for line in lines if not any(re.fullmatch(known, line) for known in OF_TENSORBOARD)] == []


def _metrics(address):
    """How many of the table's metrics every cell has, by run."""
    groups = _asked(f"{address}data/plugin/hparams/session_groups", GROUPS)["sessionGroups"]
    return {session["name"]: len(session["metricValues"]) for group in groups for session in group["sessions"]}


def _asked(address, request=None):
    body = None if request is None else json.dumps(request).encode()
    return json.load(urlopen(Request(address, body, {"Content-Type": "application/json"})))


def _when(found):
    """What it finds, once it finds something; a minute at most."""
    until = time.monotonic() + 60
    while not (what := found()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return what
