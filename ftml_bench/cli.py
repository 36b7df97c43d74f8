"""The command line, `ftml-bench`. It answers at once: torch and avalanche are imported only by what runs something."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ftml_bench import __version__
from ftml_bench.errors import UsageError, unknown
from ftml_bench.runs.signals import Stopped, as_ctrl_c

if TYPE_CHECKING:
    from ftml_bench.runs.definition import Definition


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    :return: the exit code: 0, 1 if a cell failed, 2 for an error of use (one line on stderr), 130 after Ctrl-C, 143 and
        129 after SIGTERM and SIGHUP.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Avalanche warns of what the suite leaves out on purpose (loggers); an error of use shall stay one line.
    warnings.filterwarnings("ignore", module="avalanche")
    # "my_module:MyStrategy" beside the user is found; last in the path, so that it hides nothing.
    sys.path.append(os.getcwd())
    try:
        options = _parse(given)
        with as_ctrl_c():
            code = _run_command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as error:
        print(f"ftml-bench: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            text = "stopped; the same command goes on with the cells that are not finished"
            print(f"\nftml-bench: {text}", file=sys.stderr, flush=True)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _run_command(options: argparse.Namespace) -> int:
    """The exit code of a command; foreign code that ends the process while it is imported or built is no success."""
    try:
        return options.function(options)
    except (SystemExit, GeneratorExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}({error})"
        raise UsageError(f"{frame.filename}:{frame.lineno} ended the command by {what}") from error


class _Parser(argparse.ArgumentParser):
    """Says an error in one line, as all others are said."""

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

    add("list", _list, "list leaderboards, benchmarks, strategies and models", "ftml-bench list")

    data = add(
        "data",
        _data,
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
    data.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the stream that is drawn (default 0)")
    _add_data(data)

    leaderboard = add(
        "leaderboard",
        _leaderboard,
        "run a leaderboard, or go on with it, and print its table",
        "ftml-bench leaderboard quick --jobs 2",
    )
    leaderboard.add_argument("definition", metavar="NAME|FILE.yaml", help="a name of `ftml-bench list`, or a file")
    leaderboard.add_argument("--seeds", type=_integers, metavar="0,1,2", help="other seeds than the definition's")
    _add_running(leaderboard, "runs/NAME")

    run = add(
        "run",
        _run,
        "run one strategy on one benchmark, with the benchmark's own defaults",
        "ftml-bench run Sinusoids FTML --set meta_batch_size=10 --benchmark-set rounds=10",
    )
    run.add_argument("benchmark", metavar="BENCHMARK", help="a name of `ftml-bench list`, or module:Class")
    run.add_argument("strategy", metavar="STRATEGY", help="a name of `ftml-bench list`, or module:Class")
    run.add_argument("--seed", type=_seed, default=0, metavar="N", help="default 0")
    run.add_argument("--steps", type=int, default=20, metavar="N", help="training steps an arrival (default 20)")
    run.add_argument("--arrivals", type=_integers, metavar="N|a,b,c", help="datapoints of each arrival")
    run.add_argument("--lr", type=float, default=0.001, metavar="X", help="learning rate of Adam (default 0.001)")
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the strategy's settings"
    )
    run.add_argument(
        "--benchmark-set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the benchmark's settings"
    )
    _add_running(run, "runs/BENCHMARK-STRATEGY")

    check = add(
        "check",
        _check,
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
        "report", _report, "make tables, figures and page anew from a run's files", "ftml-bench report runs/quick"
    )
    report.add_argument("folder", type=Path, metavar="DIR", help="a leaderboard's folder")

    speed = add("speed", _speed, "time the engines against each other", "ftml-bench speed --repeats 5")
    speed.add_argument("--repeats", type=int, default=5, metavar="N", help="interleaved repeats (default 5)")
    speed.add_argument("--threads", type=int, nargs="+", metavar="N", help="of PyTorch (default: 1, and all cores)")
    speed.add_argument("--device", default="cpu", metavar="NAME", help="time on: cpu (default), cuda ...")
    speed.add_argument("--out", type=Path, metavar="DIR", help="also write the engines' tables to DIR/engines.md")
    other = speed.add_mutually_exclusive_group()
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
            raise unknown(f"option of {name}", argument, commands.choices[name]._option_string_actions)
        raise UsageError(f"{name} takes no further argument {argument!r} (see ftml-bench {name} --help)")
    return options


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", help="folder of data sets (default: $FTML_BENCH_DATA, else the user's cache)"
    )


def _add_running(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder of the results (default {default})")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells at a time (default: the cores that are usable; 1 on a GPU)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="to train on: cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_data(parser)


def _list(options: argparse.Namespace) -> int:
    from ftml_bench import registry
    from ftml_bench.runs import definition

    groups = {"leaderboards": definition.available()}
    for title, kind in (("benchmarks", "benchmark"), ("strategies", "strategy"), ("models", "model")):
        groups[title] = {name: entry.summary for name, entry in registry.entries(kind).items()}
    width = max(len(name) for names in groups.values() for name in names)
    for title, names in groups.items():
        print(f"{title}:")
        for name, summary in names.items():
            print(f"  {name:<{width}}  {summary}")
    return 0


def _data(options: argparse.Namespace) -> int:
    from ftml_bench import registry

    if options.sheet:
        return _sheet(options)
    if options.name == "pose":
        return _pose(options)
    if options.time or options.scores:
        raise UsageError("--time and --scores are of the rendered data: ftml-bench data pose --time")
    if options.name not in (None, "mnist", "cifar100"):
        if options.name in registry.entries("benchmark"):
            raise UsageError(f"{options.name} is a benchmark: add --sheet FILE.png to draw it")
        raise unknown("data set", options.name, ["mnist", "cifar100", "pose"])
    if options.download and options.name is None:
        raise UsageError("say what to fetch: ftml-bench data mnist --download, or cifar100")
    if options.strips and options.name != "cifar100":
        raise UsageError("strips are made of cifar100: ftml-bench data cifar100 --strips DIR")
    from ftml_bench.benchmarks.data import cifar100, data_root, mnist

    print(f"data are looked for in {data_root(options.data)}")
    if options.download:
        {"mnist": mnist, "cifar100": cifar100}[options.name].download(options.data)
    if options.strips:
        from ftml_bench.benchmarks.data.cifar100_strips import write_strips

        print(f"cifar100 strips: {write_strips(options.strips, options.data)}")
        return 0
    # Reading a data set checks it.
    counts: dict[str, Callable[[str], int]] = {
        "mnist": lambda split: len(mnist.read_mnist(split, options.data)[0]),
        "cifar100": lambda split: cifar100.read_cifar100(split, root=options.data).shape[:2].numel(),
        "cifar100 subset": lambda split: (
            cifar100.read_cifar100(split, subset=True, root=options.data).shape[:2].numel()
        ),
    }
    errors = []
    asked = [name for name in counts if options.name in (None, name.split()[0])]
    for name in asked:
        try:
            for split in ("train", "test"):
                print(f"{name} {split}: {counts[name](split):,} images, complete")
        except UsageError as error:
            errors.append((name, error))
    if options.name and len(errors) == len(asked):
        raise errors[0][1]
    for name, reason in errors:
        print(f"{name}: {reason}")
    return 0


def _pose(options: argparse.Namespace) -> int:
    from ftml_bench.benchmarks.data import data_root
    from ftml_bench.rendering import report

    if options.download:
        raise UsageError("pose has no files that can be fetched: its solids are built in, its CAD models are put there")
    root = data_root(options.data) / "pascal3d"
    lines = report.state(root)
    if options.scores:
        lines = report.scores(root)
    elif options.time:
        lines = report.speed(root)
    for line in lines:
        print(line, flush=True)
    return 0


def _sheet(options: argparse.Namespace) -> int:
    import inspect

    from ftml_bench import registry

    if options.name is None:
        raise UsageError("say what to draw: ftml-bench data BENCHMARK --sheet FILE.png")
    folder = Path(options.sheet).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} to write {options.sheet} into")
    benchmark_class = registry.load("benchmark", options.name)
    from ftml_bench.benchmarks.sheets import contact_sheet

    settings = {**getattr(benchmark_class, "sheet_settings", {}), **_key_values("--set", options.set)}
    if "root" in inspect.signature(benchmark_class).parameters:
        settings = {"root": options.data, **settings}
    try:
        contact_sheet(benchmark_class(seed=options.seed, **settings), options.sheet)
    except TypeError as error:  # a setting that it does not take
        raise UsageError(f"{options.name}: {error}") from error
    print(options.sheet)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from ftml_bench.runs import definition as definitions

    definition = definitions.load(options.definition)
    if options.seeds is not None:
        definition = definitions.with_seeds(definition, options.seeds)
    return _run_and_report(definition, options)


def _run(options: argparse.Namespace) -> int:
    from ftml_bench.runs import definition as definitions

    # Of "module:Class" the class: a colon cannot stand in the name of a folder.
    benchmark, strategy = options.benchmark.split(":")[-1], options.strategy.split(":")[-1]
    arrivals = options.arrivals
    row = {"strategy": options.strategy, **_key_values("--set", options.set)}
    content = {
        "name": f"{benchmark}-{strategy}",
        "seeds": [options.seed],
        "benchmarks": {
            benchmark: {
                "benchmark": options.benchmark,
                "settings": _key_values("--benchmark-set", options.benchmark_set),
                "arrivals": arrivals[0] if arrivals is not None and len(arrivals) == 1 else arrivals,
                "steps": options.steps,
                "optimizer": {"name": "Adam", "lr": options.lr},
                "strategies": {strategy: row},
            }
        },
    }
    return _run_and_report(definitions.from_dict(content, "run"), options)


def _check(options: argparse.Namespace) -> int:
    from ftml_bench import check

    outcomes = check.check(
        options.name,
        _key_values("--set", options.set),
        benchmark=options.benchmark,
        benchmark_settings=_key_values("--benchmark-set", options.benchmark_set),
    )
    broken = 0
    for outcome in outcomes:
        print(outcome, flush=True)
        broken += outcome.verdict == "broken"
    return 1 if broken else 0


def _report(options: argparse.Namespace) -> int:
    print(_report_text(options.folder), end="")
    _say_where(options.folder)
    return 0


def _speed(options: argparse.Namespace) -> int:
    for name, counts in {"repeats": [options.repeats], "threads": options.threads or []}.items():
        for count in counts:
            if count < 1:
                raise UsageError(f"--{name}: expected a whole number of at least 1, got {count}")
    _check_device(options.device)
    if options.run or options.buffer is not None:
        import torch

        torch.set_num_threads(options.threads[0] if options.threads else 1)
        if options.run:
            from ftml_bench.speed import arrivals

            print(arrivals.report(repeats=options.repeats, device=options.device))
        else:
            from ftml_bench.speed import buffers

            print(buffers.report(options.buffer, repeats=options.repeats))
        return 0
    from ftml_bench import speed

    lines = []
    for line in speed.report(repeats=options.repeats, threads=options.threads, device=options.device):
        print(line, flush=True)
        lines.append(f"{line}\n")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "engines.md").write_text("".join(lines), encoding="utf-8")
    return 0


def _run_and_report(definition: Definition, options: argparse.Namespace) -> int:
    _check_device(options.device)
    usual = _usable_cores() if options.device == "cpu" else 1
    jobs = usual if options.jobs is None else options.jobs
    if jobs < 1:
        raise UsageError(f"--jobs: expected a whole number of at least 1, got {jobs}")
    if options.data is not None and not Path(options.data).is_dir():
        raise UsageError(f"--data: there is no folder {options.data}")
    root: Path = options.out or Path("runs", definition.name)
    from ftml_bench.runs import schedule

    schedule.check_free(definition, root)  # before the seconds that it takes to import what follows
    from ftml_bench.runs import cell

    schedule.check_versions(definition, root, cell.versions(definition))
    cell.check(definition, options.data)
    outcomes = schedule.run_cells(
        definition, root, jobs=jobs, data=options.data, quiet=options.quiet, device=options.device
    )
    print(_report_text(root), end="")
    _say_where(root)
    return 1 if any(status == "failed" for _, status, _ in outcomes) else 0


def _report_text(root: Path) -> str:
    import shutil

    from ftml_bench import report

    return report.write(root, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _say_where(root: Path) -> None:
    import shlex

    print(f"\nfigures:      {root / 'figures'}")
    print(f"report:       {root / 'report.html'}")
    print(f"TensorBoard:  tensorboard --logdir {shlex.quote(str(root))}")


def _check_device(name: str) -> None:
    if name == "cpu":
        return
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    usable = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name in usable:
        return
    if name.split(":")[0] == "cuda" and not gpus:
        raise UsageError(f"--device {name}: PyTorch finds no GPU here: expected cpu")
    raise unknown("--device", name, usable)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer than the machine has, in a container or under taskset
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key_values(option: str, texts: list[str]) -> dict[str, Any]:
    """{"rounds": 10} of ["rounds=10"]: values are read as in a definition."""
    from ftml_bench.runs.values import parse_yaml

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}: expected key=value, got {text!r}")
        if key in values:
            raise UsageError(f"{option}: {key!r} is set twice")
        values[key] = parse_yaml(value, f"{option} {key}")
    return values


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from None


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
