"""The command line, `ftml-bench`. It answers at once: torch and avalanche are imported only by what runs something."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ftml_bench import __version__
from ftml_bench.commands import checking, comparing, listing, running, submitting, timing, verifying
from ftml_bench.commands import data as datasets
from ftml_bench.commands.options import add_data, add_running, integers, rate, seed, size
from ftml_bench.errors import UsageError, printable, unknown
from ftml_bench.runs.noise import without_noise
from ftml_bench.runs.signals import Stopped, as_ctrl_c


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    :return: the exit code: 0, 1 if a cell failed, 2 for an error of use (one line on stderr), 130 after Ctrl-C, 143 and
        129 after SIGTERM and SIGHUP.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    without_noise()  # an error of use shall stay one line
    try:
        _check_surroundings()
        options = _parse(given)
        with as_ctrl_c():
            code = _run_command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader had enough, as `head` does
        _drop_output()
        return 0
    except UsageError as error:
        return _refused(str(error))
    except OSError as error:
        what = error.filename or ("the standard output" if _output_is_lost() else "a file that was written")
        return _refused(f"{what} cannot be used: {error.strerror or error}")
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            # with it the cells that are finished by now would be done once more
            without = " without --redo" if any(one.partition("=")[0] == "--redo" for one in given) else ""
            text = f"stopped; the same command{without} goes on with the cells that are not finished"
            print(f"\nftml-bench: {text}", file=sys.stderr, flush=True)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _refused(reason: str) -> int:
    with suppress(OSError):  # the terminal may be gone
        print(f"ftml-bench: error: {printable(reason)}", file=sys.stderr, flush=True)
    return 2


def _check_surroundings() -> None:
    """Sees that there is somewhere to write to, and a folder that relative names are in.

    :raises UsageError: the standard output is closed, or the working folder is gone.
    """
    if sys.stderr is None:  # closed: else the next file that is opened would take its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise UsageError("the standard output is closed: expected a terminal, a file or a pipe")
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal can show "±"
        sys.stdout.reconfigure(errors="backslashreplace")
    # "my_module:MyStrategy" beside the user is found; last in the path, so that it hides nothing.
    try:
        sys.path.append(os.getcwd())
    except OSError as error:
        raise UsageError("the working folder is gone: expected to be started in one that is there") from error


def _output_is_lost() -> bool:
    """Whether nothing can be printed, as where the output is a file on a full disk."""
    try:
        print(flush=True)  # what could not be written before is not tried again
    except OSError:
        _drop_output()
        return True
    return False


def _drop_output() -> None:
    """What is printed is lost from here on: Python would try to write the rest at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_command(options: argparse.Namespace) -> int:
    """The exit code of a command; foreign code that ends the process while it is imported or built is no success."""
    try:
        return options.function(options)
    except (SystemExit, GeneratorExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}({error})"
        raise UsageError(f"{frame.filename}:{frame.lineno} ended the command by {what}") from error


class _Parser(argparse.ArgumentParser):
    """Says an error in one line, as all others are said, and takes options by their whole names alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    @property
    def options(self) -> list[str]:
        """The options that its usage names."""
        return ["--help", *re.findall(r"(?<=[\[\s])--?[a-z][\w-]*", self.format_usage())]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ftml-bench",
        description="Online meta-learning benchmarks: does a learner learn new tasks faster and faster?",
        epilog="The first thing to try: ftml-bench leaderboard quick",
    )
    parser.add_argument("--version", action="version", version=f"ftml-bench {__version__}", help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str, example: str) -> _Parser:
        added = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"Example: {example}"
        )
        added.set_defaults(function=function)
        return added

    add("list", listing.list_names, "list leaderboards, benchmarks, strategies and models", "ftml-bench list")

    data = add(
        "data",
        datasets.data,
        "say where data are looked for, check or fetch them, or draw a benchmark",
        "ftml-bench data mnist --download; ftml-bench data pose; ftml-bench data RainbowDigits --sheet digits.png",
    )
    data.add_argument("name", nargs="?", metavar="NAME", help="mnist, cifar100, pose, or with --sheet a benchmark")
    data.add_argument("--download", action="store_true", help="fetch what is missing")
    data.add_argument(
        "--strips", type=Path, metavar="DIR", help="write the part of cifar100 that small leaderboards take as strips"
    )
    data.add_argument("--sheet", metavar="FILE.png", help="draw the benchmark's first datapoints")
    data.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the benchmark drawn"
    )
    data.add_argument("--time", action="store_true", help="pose: images per CPU second of every renderer (minutes)")
    data.add_argument(
        "--scores", action="store_true", help="pose: how well the azimuth of every object can be read off its pictures"
    )
    data.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the stream that is drawn (default 0)")
    add_data(data)

    leaderboard = add(
        "leaderboard",
        running.leaderboard,
        "run a leaderboard, or go on with it, and print its table",
        "ftml-bench leaderboard quick --jobs 2",
    )
    leaderboard.add_argument("definition", metavar="NAME|FILE.yaml", help="a name of `ftml-bench list`, or a file")
    leaderboard.add_argument("--seeds", type=integers, metavar="0,1,2", help="other seeds than the definition's")
    leaderboard.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="CELL|failed|all",
        help="do again from the start: a cell such as digits/FTML/seed-0, those that failed, or all",
    )
    looks = leaderboard.add_mutually_exclusive_group()
    looks.add_argument("--status", action="store_true", help="say what is done, runs and is open; run nothing")
    looks.add_argument("--dry-run", action="store_true", help="say which cells would be run; run nothing")
    leaderboard.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run cells on the Ray cluster at ADDRESS (auto, or HOST:PORT), or on one that is begun here",
    )
    add_running(leaderboard, "runs/NAME")

    run = add(
        "run",
        running.run,
        "run one strategy on one benchmark, with the benchmark's own defaults",
        "ftml-bench run Sinusoids FTML --set meta_batch_size=10 --benchmark-set rounds=10",
    )
    run.add_argument("benchmark", metavar="BENCHMARK", help="a name of `ftml-bench list`, or module:Class")
    run.add_argument("strategy", metavar="STRATEGY", help="a name of `ftml-bench list`, or module:Class")
    run.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    run.add_argument("--steps", type=size, default=20, metavar="N", help="training steps an arrival (default 20)")
    run.add_argument("--arrivals", type=integers, metavar="N|a,b,c", help="datapoints of each arrival")
    run.add_argument("--lr", type=rate, default=0.001, metavar="X", help="learning rate of Adam (default 0.001)")
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the strategy's settings"
    )
    run.add_argument(
        "--benchmark-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the benchmark's settings"
    )
    add_running(run, "runs/BENCHMARK-STRATEGY")

    check = add(
        "check",
        checking.check,
        "try what every strategy, benchmark and model has to hold on one of them",
        "ftml-bench check my_module:MyStrategy --set strength=0.5",
    )
    check.add_argument("name", metavar="NAME", help="a name of `ftml-bench list`, or module:Class")
    check.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="its settings")
    check.add_argument(
        "--benchmark", default="RainbowDigits", metavar="NAME", help="for strategies and models: tried on which"
    )
    check.add_argument(
        "--benchmark-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="that benchmark's settings"
    )

    report = add(
        "report",
        running.report,
        "make tables, figures and page anew from a run's files",
        "ftml-bench report runs/quick",
    )
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="leaderboards' folders or archives (.zip)")
    report.add_argument(
        "--overall",
        type=Path,
        nargs="?",
        const=Path("overall"),
        metavar="OUT",
        help="instead: ranks of learners over the streams of all, written to OUT (default overall)",
    )

    verify = add(
        "verify",
        verifying.verify,
        "see that results are what the runs left, complete and possible, and tables what the curves make",
        "ftml-bench verify runs/quick --rerun 1",
    )
    verify.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="leaderboards' folders or archives (.zip)")
    verify.add_argument(
        "--rerun", type=seed, default=0, metavar="N", help="also run N cells again and compare their curves"
    )
    add_data(verify)

    submit = add(
        "submit",
        submitting.submit,
        "verify a result and pack it as one archive, which report, verify and compare read",
        "ftml-bench submit runs/quick",
    )
    submit.add_argument("folder", type=Path, metavar="DIR", help="a leaderboard's folder")
    submit.add_argument("--out", type=Path, metavar="FILE.zip", help="the archive (default NAME.zip, here)")

    compare = add(
        "compare",
        comparing.compare,
        "say what is better or worse in one run of a leaderboard than in another, beyond noise",
        "ftml-bench compare leaderboards/results/quick runs/quick",
    )
    compare.add_argument("old", type=Path, metavar="OLD", help="a leaderboard's folder or archive (.zip)")
    compare.add_argument("new", type=Path, metavar="NEW", help="another, of the same benchmarks")

    speed = add("speed", timing.speed, "time the engines against each other", "ftml-bench speed --repeats 5")
    speed.add_argument("--repeats", type=size, default=5, metavar="N", help="interleaved repeats (default 5)")
    speed.add_argument("--threads", type=size, nargs="+", metavar="N", help="of PyTorch (default: 1, and all cores)")
    speed.add_argument("--device", default="cpu", metavar="NAME", help="time on: cpu (default), cuda ...")
    speed.add_argument("--out", type=Path, metavar="DIR", help="also write the tables, and figures, into DIR")
    other = speed.add_mutually_exclusive_group()
    other.add_argument("--growth", action="store_true", help="instead: how cost and memory grow with tasks, steps ...")
    other.add_argument("--baselines", action="store_true", help="instead: the baselines' steps against plain loops")
    other.add_argument("--start", action="store_true", help="instead: quick from cold start, part by part (minutes)")
    other.add_argument("--run", action="store_true", help="instead: where the time of a run goes, part by part")
    other.add_argument(
        "--buffer", metavar="DIR", help="instead: a buffer of a million images in a file in DIR against one in memory"
    )

    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name is not None and name not in commands.choices:
        raise unknown("command", name, commands.choices)
    options, extra = parser.parse_known_args(arguments)
    for argument in extra:
        if name is not None and argument.startswith("-"):
            raise unknown(f"option of {name}", argument.partition("=")[0], commands.choices[name].options)
        raise UsageError(f"{name} takes no further argument {argument!r} (see ftml-bench {name} --help)")
    return options


if __name__ == "__main__":
    sys.exit(main())
