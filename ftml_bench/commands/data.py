"""`ftml-bench data`: where data are, whether they are whole, and how they look."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ftml_bench.commands.options import key_values
from ftml_bench.errors import UsageError, printable, unknown
from ftml_bench.files import replacing


def data(options: argparse.Namespace) -> int:
    from ftml_bench import registry

    other = next((name for name in ("download", "strips", "time", "scores") if getattr(options, name)), None)
    if options.sheet:
        if other:
            raise UsageError(f"--sheet and --{other}: expected one of them")
        return _sheet(options)
    if options.set or options.seed:
        raise UsageError("--set and --seed are of a benchmark that is drawn: add --sheet FILE.png")
    if options.strips and options.name != "cifar100":
        raise UsageError("strips are made of cifar100: ftml-bench data cifar100 --strips DIR")
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
        print(f"{name}: {printable(str(reason))}")
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
    from ftml_bench import registry

    if options.name is None:
        raise UsageError("say what to draw: ftml-bench data BENCHMARK --sheet FILE.png")
    file = Path(options.sheet)
    if file.suffix.lower() != ".png":
        raise UsageError(f"--sheet: expected a name that ends in .png, got {file}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.absolute().parent} to write {file} into")
    if file.exists():
        raise UsageError(f"{file} exists: move it away or choose another name")
    benchmark_class = registry.load("benchmark", options.name)
    from ftml_bench.benchmarks.sheets import contact_sheet
    from ftml_bench.runs.building import construct
    from ftml_bench.runs.signatures import parameters_of

    settings = {**getattr(benchmark_class, "sheet_settings", {}), **key_values("--set", options.set)}
    if "root" in parameters_of(benchmark_class, options.name):
        settings = {"root": options.data, **settings}
    if "seed" in settings:
        raise UsageError("--set: 'seed' cannot be set here: give --seed")
    benchmark = construct(benchmark_class, {**settings, "seed": options.seed}, options.name, hidden={"seed"})
    with replacing(file) as drawn:
        contact_sheet(benchmark, drawn)
    print(file)
    return 0
