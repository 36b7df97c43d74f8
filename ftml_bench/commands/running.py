"""`ftml-bench leaderboard`, `run` and `report`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ftml_bench.commands.options import check_device, key_values
from ftml_bench.cores import usable_cores
from ftml_bench.errors import UsageError

if TYPE_CHECKING:
    from ftml_bench.runs.definition import Cell, Definition
    from ftml_bench.runs.schedule import Place


def leaderboard(options: argparse.Namespace) -> int:
    from ftml_bench.runs import definition as definitions

    definition = definitions.load(options.definition)
    if options.seeds is not None:
        definition = definitions.with_seeds(definition, options.seeds)
    root: Path = options.out or Path("runs", definition.name)
    if options.status or options.dry_run:
        from ftml_bench.commands import looking

        if options.status:
            return looking.show_status(definition, root)
        _place(options, options.ray)
        looking.dry_run(definition, root, _checked(definition, root, options, options.redo))
        return 0
    return _run_and_report(definition, options, options.redo, options.ray)


def run(options: argparse.Namespace) -> int:
    from ftml_bench.runs import definition as definitions
    from ftml_bench.runs.values import folder_for

    benchmark, strategy = folder_for(options.benchmark), folder_for(options.strategy)
    arrivals = options.arrivals
    settings = key_values("--set", options.set)
    if "strategy" in settings:
        raise UsageError(f"--set: 'strategy' cannot be set here: it is {options.strategy}")
    row = {"strategy": options.strategy, **settings}
    content = {
        "name": f"{benchmark}-{strategy}",
        "seeds": [options.seed],
        "benchmarks": {
            benchmark: {
                "benchmark": options.benchmark,
                "settings": key_values("--benchmark-set", options.benchmark_set),
                "arrivals": arrivals[0] if arrivals is not None and len(arrivals) == 1 else arrivals,
                "steps": options.steps,
                "optimizer": {"name": "Adam", "lr": options.lr},
                "strategies": {strategy: row},
            }
        },
    }
    return _run_and_report(definitions.from_dict(content, "run"), options)


def report(options: argparse.Namespace) -> int:
    from ftml_bench.runs.packed import unpacked

    if options.overall is not None:
        from ftml_bench.report import overall

        print(overall.write(options.folders, options.overall), end="")
        print(f"\ntable and figure:  {options.overall}")
        return 0
    for number, folder in enumerate(options.folders):
        print("\n" if number else "", end="")
        with unpacked(folder) as root:
            print(_report_text(root), end="")
            if root == folder:  # of an archive, the tables alone: its files stay as they are
                _say_where(root)
    return 0


def _run_and_report(
    definition: Definition, options: argparse.Namespace, redo_names: Sequence[str] = (), ray: str | None = None
) -> int:
    jobs = options.jobs or (usable_cores() if options.device == "cpu" else 1)
    place = _place(options, ray)
    root: Path = options.out or Path("runs", definition.name)
    redo = _checked(definition, root, options, redo_names)
    from ftml_bench.runs import pictures, schedule

    outcomes = schedule.run_cells(
        definition,
        root,
        jobs=jobs,
        place=place,
        data=options.data,
        quiet=options.quiet,
        device=options.device,
        redo=redo,
    )
    pictures.draw_tasks(definition, root, options.data)
    print(_report_text(root), end="")
    _say_where(root)
    return 1 if any(status == "failed" for _, status, _ in outcomes) else 0


def _checked(definition: Definition, root: Path, options: argparse.Namespace, redo_names: Sequence[str]) -> set[Cell]:
    """The cells that are done again; everything is refused here that can be before a cell is run."""
    if options.data is not None and not Path(options.data).is_dir():
        raise UsageError(f"--data: there is no folder {options.data}")
    from ftml_bench.runs import schedule
    from ftml_bench.runs.signals import put_off

    schedule.check_free(definition, root)  # before the seconds that it takes to import what follows
    redo = schedule.cells_named(definition, root, redo_names)
    with put_off():
        from ftml_bench.runs import cell

    with _named(getattr(options, "definition", "run")):
        versions = cell.versions(definition)
    schedule.check_versions(definition, root, versions, redo)
    with _named(getattr(options, "definition", "run")):
        cell.check(definition, options.data)
    return redo


@contextmanager
def _named(definition: str) -> Iterator[None]:
    """Errors name the definition, as those do that are found when it is read."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{definition}: {error}") from error


def _place(options: argparse.Namespace, ray: str | None) -> Place | None:
    """Where cells run with --ray ADDRESS; None: here."""
    if ray is not None:
        return _on_cluster(ray, options)
    check_device(options.device)
    return None


def _on_cluster(address: str, options: argparse.Namespace) -> Place:
    from ftml_bench.runs import cluster

    cluster.imported()  # before anything is begun
    if address not in (cluster.HERE, "auto") and not re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", address):
        raise UsageError(
            f"--ray: expected 'auto' or HOST:PORT of a cluster that this machine is one of, got {address!r}"
        )
    if address != cluster.HERE and options.jobs is not None:
        raise UsageError(f"--jobs: how many cells run at a time is what the cluster {address!r} has room for")
    if options.device not in ("cpu", "cuda"):
        raise UsageError(f"--device {options.device}: expected cpu or cuda with --ray, which chooses the GPU")
    cores = options.jobs or usable_cores()
    return lambda *_: cluster.RayPool(address, cores)


def _report_text(root: Path) -> str:
    import shutil

    from ftml_bench.runs.signals import put_off

    with put_off():
        from ftml_bench import report

    return report.write(root, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _say_where(root: Path) -> None:
    import shlex

    print(f"\nfigures:      {root / 'figures'}")
    print(f"report:       {root / 'report.html'}")
    print(f"TensorBoard:  tensorboard --logdir {shlex.quote(str(root))}")
