"""Kills leaderboards at random moments, has them go on by the same command, and compares with one that was left alone.

    python tests/runs/kills.py --kills 1000 [--real] [--seed 0]

Of every board: jobs (1 or 2), whom (the parent, a worker, the whole group) and how (SIGTERM, SIGKILL) are drawn, and
that again until the board has been killed a few times; then it runs to its end. Its records (but for clock and
provenance), curves and measures have to be byte for byte those of a board that nobody disturbed, and five seconds after
a parent is gone no process of it may be there. Processes are found by a mark in their environment (/proc: Linux).

On a cluster of Ray's, with its machines among whom is killed: `kills_on_ray.py`.

Without `--real` the cells are a few lines that import neither torch nor Avalanche, so that thousands of kills of the
scheduling, of its files and locks, take minutes. With it, they are the suite's own, with their saved states.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

MARK = "FTML_BENCH_KILLS"
BOARD = """
name: kills
seeds: [0, 1]
benchmarks:
  waves:
    benchmark: Sinusoids
    settings: {rounds: 4, images_per_round: 12, held_out_per_round: 20}
    arrivals: 4
    checkpoints: [4, 12]
    measures: [regret]
    steps: 2
    optimizer: {name: Adam, lr: 0.003}
    strategies:
      FTML: {inner_lr: 0.01, meta_batch_size: 2, update_steps: 2}
      FollowTheLeader: {train_mb_size: 10}
"""
ROUNDS = 6  # of a light cell
PAUSE = 0.01  # seconds before an evaluation of a light cell
OF_CLOCK_AND_PLACE = {"started", "finished", "resumed", "command", "commit", "machine"}


# -- what is killed: `kills.py board light|real FILE.yaml ...` is `ftml-bench leaderboard ...` with cells of this file


def board(cells: str, *arguments: str) -> int:
    """The command line's exit code."""
    from ftml_bench import cli
    from ftml_bench.commands import running
    from ftml_bench.runs import schedule

    running._report_text = lambda root: ""
    if cells == "real":
        schedule.RUN_CELL = "kills:run_real"
    else:
        schedule.RUN_CELL = "kills:run_light"
        nothing = SimpleNamespace(
            versions=lambda d: {b.name: {"version": 1, "benchmark_version": 1} for b in d.benchmarks},
            check=lambda *_: None,
        )
        sys.modules["ftml_bench.runs.cell"] = nothing  # type: ignore[assignment]
        drawing = SimpleNamespace(draw_tasks=lambda *_: None)
        sys.modules["ftml_bench.runs.pictures"] = drawing  # type: ignore[assignment]
        import ftml_bench.runs

        ftml_bench.runs.cell = nothing  # type: ignore[attr-defined]
        ftml_bench.runs.pictures = drawing  # type: ignore[attr-defined]
    return cli.main(["leaderboard", *arguments, "--quiet"])


def run_real(*arguments, **settings) -> str:
    """The suite's cell, which saves its state after every evaluation."""
    from ftml_bench.runs import cell, resuming

    resuming.SAVE_EVERY = 0.0
    return cell.run_cell(*arguments, **settings)


def run_light(definition, cell, folder, data, on_evaluation, device="cpu") -> str:
    """Stands for a cell: numbers that depend on all before them, a state that is saved every third evaluation."""
    from ftml_bench.errors import UsageError
    from ftml_bench.files import replacing
    from ftml_bench.runs.record import CURVE_COLUMNS, SAVED_STATE, RunWriter

    header = {"definition": definition.hash, "protocol": {"version": 1, "benchmark_version": 1}}
    expected = [(round, round, size) for round in range(ROUNDS) for size in (4, 8, 12)]
    done, number = 0, 1 + cell.seed
    try:
        state = json.loads((folder / SAVED_STATE).read_text())
        writer = RunWriter.go_on(folder, header, state["contents"], definition.includes)
        done, number = state["done"], state["number"]
    except FileNotFoundError:
        writer = RunWriter.start(folder, header)
    except UsageError as error:
        print(f"light: {error}: from the start", file=sys.stderr)
        writer = RunWriter.start(folder, header)
    while done < len(expected):
        time.sleep(PAUSE)
        number = (number * 6364136223846793005 + 1442695040888963407) % 2**64
        round, _, size = expected[done]
        done += 1
        row = {"round": round, "evaluated_round": round, "datapoints": size, "loss": number / 2**64, "accuracy": None}
        writer.append({**dict.fromkeys(CURVE_COLUMNS, done), **row}, 0.01 * done)
        writer.append_measure(round, "regret", number / 2**63)
        on_evaluation(done, len(expected))
        if done % 3 == 0:
            with replacing(folder / SAVED_STATE) as file:
                file.write(json.dumps({"done": done, "number": number, "contents": writer.contents()}).encode())
    writer.check(expected)
    writer.finish("finished", cost={"steps": done})
    return "finished"


# -- who kills


def results(root: Path) -> dict[str, bytes | dict]:
    """All that a leaderboard's numbers are: records, but for clock and provenance, curves and measures."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.name == "record.json":
            content = json.loads(path.read_text())
            found[name] = {key: value for key, value in content.items() if key not in OF_CLOCK_AND_PLACE}
            content.get("tables", {}).pop("timing.csv", None)
        elif path.name in ("curve.csv", "measures.csv", "leaderboard.yaml"):
            found[name] = path.read_bytes()
        elif path.name.startswith(".") or path.name in ("state.pt", "error.txt"):
            found[name] = b"must not be there"
    return found


def marked(mark: str) -> list[int]:
    """The processes that live with this mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdecimal() or (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def workers(mark: str) -> list[int]:
    """The processes in which cells run."""
    found = []
    for process in marked(mark):
        try:
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


class Killer:
    """Kills boards and counts.

    :param real: whether the cells are the suite's.
    """

    whom: tuple[str, ...] = ("parent", "worker", "group")

    def __init__(self, folder: Path, *, real: bool, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._mark = f"{os.getpid()}-{seed}"
        self._cells = "real" if real else "light"
        self._definition = folder / "kills.yaml"
        self._definition.write_text(BOARD)
        begun = time.monotonic()
        assert self._start("whole", "--jobs", "1").wait() == 0, self._log("whole").read_text()
        self._seconds = time.monotonic() - begun
        self._expected = results(folder / "whole")
        assert len(self._expected) == 1 + 4 * 3

    def board(self, most: int) -> int:
        """Runs one board that is killed at most so often; returns how often it was."""
        name = f"board-{self.counts['boards']}"
        self.counts["boards"] += 1
        kills = 0
        while True:
            options = self._options()
            whom = self.random.choice(self.whom) if kills < most else "nobody"
            process = self._start(name, *options)
            if whom != "nobody" and (how := self._kill(process, whom)):
                kills += 1
                self.counts[f"{whom} by {how}, {self._said(options)}"] += 1
            code = process.wait(600)
            self._see_that_nothing_is_left(name)
            if code == 0:
                break
            if whom == "nobody" or code not in (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL):
                self._say(f"{name}: exit code {code} after {whom} was killed: {self._log(name).read_text()[-2000:]}")
                break
        found = results(self.folder / name)
        for file in sorted({*found, *self._expected}):
            if found.get(file) != self._expected.get(file):
                self._say(f"{name}: {file} is not that of the board that was left alone")
        return kills

    def _options(self) -> tuple[str, str]:
        return "--jobs", str(self.random.choice((1, 2)))

    def _said(self, options: tuple[str, str]) -> str:
        return " ".join(options)

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", __file__, "board", self._cells, str(self._definition), *options]
        environment = {**os.environ, MARK: self._mark, "OMP_NUM_THREADS": "1"}
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [*command, "--out", str(self.folder / name)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _kill(self, process: subprocess.Popen[bytes], whom: str) -> str:
        """Waits, and kills; returns how, or nothing if there was nobody to kill."""
        how = self.random.choice((signal.SIGTERM, signal.SIGKILL))
        deadline = time.monotonic() + self.random.uniform(0.0, self._seconds)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return ""
            time.sleep(0.005)
        try:
            if whom == "worker":
                while not (found := workers(self._mark)):
                    if process.poll() is not None or time.monotonic() > deadline + 5:
                        return ""
                    time.sleep(0.01)
                time.sleep(self.random.uniform(0.0, self._seconds / 2))
                os.kill(self.random.choice(found), how)
            elif whom == "group":
                os.killpg(process.pid, how)
            else:
                os.kill(process.pid, how)
        except ProcessLookupError:
            return ""
        return how.name

    def _see_that_nothing_is_left(self, name: str) -> None:
        deadline = time.monotonic() + 5.0
        while left := self._left():
            if time.monotonic() > deadline:
                commands = [(Path("/proc") / str(process) / "cmdline").read_text()[-200:] for process in left]
                self._say(f"{name}: processes {left} are left: {commands}")
                for process in left:
                    os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.02)

    def _left(self) -> list[int]:
        return marked(self._mark)

    def _say(self, text: str) -> None:
        self.wrong.append(text)
        print(f"WRONG: {text}", flush=True)


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options: how many kills, of which cells, drawn by which seed."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=int, default=100)
    made.add_argument("--real", action="store_true")
    made.add_argument("--seed", type=int, default=0)
    return made


def kill(killer: Killer, number: int) -> int:
    """Kills so often, and prints what came of it; returns an exit code."""
    kills = 0
    while kills < number:
        kills += killer.board(most=min(5, number - kills))
        print(f"{kills} kills, {len(killer.wrong)} wrong", flush=True)
    print(dict(sorted(killer.counts.items())), flush=True)
    return 1 if killer.wrong else 0


def main() -> int:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return kill(Killer(Path(folder), real=options.real, seed=options.seed), options.kills)


if __name__ == "__main__":
    sys.exit(board(*sys.argv[2:]) if sys.argv[1:2] == ["board"] else main())
