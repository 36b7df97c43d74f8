"""What a leaderboard is: a YAML definition, checked, and the cells (benchmark x row x seed) that it stands for.

Everything is checked here that can be checked without importing torch: keys, types, sizes, names. Whether a class
takes a keyword, or an arrival reaches a checkpoint, `ftml_bench.runs.cell.check` says.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftml_bench import registry
from ftml_bench.errors import UsageError, unknown
from ftml_bench.metrics.curves import LARGER_IS_BETTER
from ftml_bench.metrics.measures import MEASURES
from ftml_bench.runs import values
from ftml_bench.runs.resources import USUAL, Resources, resources_of

# What lies in a leaderboard's folder beside the benchmarks.
_RESULTS = ("leaderboard.yaml", "leaderboard.md", "leaderboard.csv", "seeds.csv", "report.html", "figures")

# What the cell decides itself, so that no row can differ in it; a row may have a model and an optimiser of its own.
GIVEN_BY_CELL = {"model", "optimizer", "criterion", "steps", "evaluator", "eval_mb_size", "device", "plugins", "seed"}


@dataclass(frozen=True)
class Row:
    """A row of the table: a strategy with its settings.

    :param name: unique in its benchmark, and the name of its folder.
    :param strategy: a name that `registry.resolve` knows.
    :param optimizer: {"name": a class of torch.optim, keyword: value, ...}, complete: the benchmark's, with the
        keywords that the row changes, or the one that the row names. "then": {"after_steps": n, "lr": value} changes
        the learning rate after n training steps of the whole stream.
    :param settings: keywords of the strategy's constructor.
    :param model: a model of its own, {"name": ..., keyword: value, ...}; None: the benchmark's.
    :param comparator: no competitor: trained on all rounds beforehand, it stands for the best meta-learner in
        hindsight.
    :param resources: what it asks of a machine of a cluster, but for what the leaderboard says for all.
    """

    name: str
    strategy: str
    optimizer: dict[str, Any]
    settings: dict[str, Any]
    model: dict[str, Any] | None = None
    comparator: bool = False
    resources: Resources = USUAL


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark of a leaderboard and its rows. None: what the benchmark itself proposes.

    :param name: unique in the leaderboard, and the name of its folder.
    :param benchmark: a name that `registry.resolve` knows; `settings` are keywords of its constructor.
    :param model: {"name": a model's name, keyword: value, ...}.
    :param arrivals: datapoints of every arrival, or of each in turn.
    :param threshold: (metric, value): the proficiency γ.
    :param checkpoints: numbers of datapoints, increasing, at which performance is reported.
    :param steps: training steps an arrival, the same for every row.
    :param optimizer: the outer optimiser; what a row does not change of it.
    :param measures: what else is measured round by round: names in `ftml_bench.metrics.measures.MEASURES`.
    """

    name: str
    benchmark: str
    settings: dict[str, Any]
    model: dict[str, Any] | None
    arrivals: int | tuple[int, ...] | None
    threshold: tuple[str, float] | None
    checkpoints: tuple[int, ...] | None
    steps: int
    optimizer: dict[str, Any]
    rows: tuple[Row, ...]
    measures: tuple[str, ...] | None = None

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Cell:
    """One run: benchmark x row x seed, by their names in the definition."""

    benchmark: str
    row: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its files are, relative to the leaderboard's folder."""
        return Path(self.benchmark, self.row, f"seed-{self.seed}")

    def __str__(self) -> str:
        return self.folder.as_posix()


@dataclass(frozen=True)
class Definition:
    """A leaderboard, checked. Make one with `load` or `from_dict`.

    :param resources: what a cell asks of a machine of a cluster; a row may say otherwise.
    """

    name: str
    description: str
    seeds: tuple[int, ...]
    benchmarks: tuple[BenchmarkSpec, ...]
    resources: Resources = USUAL

    def benchmark(self, name: str) -> BenchmarkSpec:
        """The benchmark of that name."""
        return next(spec for spec in self.benchmarks if spec.name == name)

    def cells(self) -> list[Cell]:
        """All cells, in the definition's order, the seeds of a row together."""
        return [Cell(spec.name, row.name, seed) for spec in self.benchmarks for row in spec.rows for seed in self.seeds]

    def to_dict(self) -> dict[str, Any]:
        """Plain values in a fixed form, defaults written out; `from_dict` makes an equal definition of them."""
        return {
            "name": self.name,
            "description": self.description,
            "seeds": list(self.seeds),
            **_resources_to_dict(self.resources),
            "benchmarks": {spec.name: _spec_to_dict(spec) for spec in self.benchmarks},
        }

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that change with whatever could change a result: not description and resources."""
        content = self.to_dict()
        for unimportant in ("description", "resources"):
            content.pop(unimportant, None)
        for spec in content["benchmarks"].values():
            for row in spec["strategies"].values():
                row.pop("resources", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def available() -> dict[str, str]:
    """The leaderboards that come with the package: name -> description."""
    return {name: load(name).description for name in sorted(_packaged())}


def load(name_or_path: str) -> Definition:
    """The definition of a packaged leaderboard, or the one in a file whose name ends in ".yaml".

    :raises UsageError: no such leaderboard or file, bad YAML, or anything in it that cannot be run.
    """
    if not name_or_path.endswith(".yaml"):
        texts = _packaged()
        if name_or_path not in texts:
            raise UsageError(f"{unknown('leaderboard', name_or_path, texts)} or the path of a .yaml file")
        return from_dict(values.parse_yaml(texts[name_or_path], name_or_path), name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # of a name with a null byte, or of bytes that are no UTF-8
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read the definition {name_or_path}: {reason}") from error
    return from_dict(values.parse_yaml(text, name_or_path), name_or_path)


def with_seeds(definition: Definition, seeds: list[int]) -> Definition:
    """The same leaderboard for other seeds.

    :raises UsageError: no seeds, a negative or a repeated one.
    """
    return replace(definition, seeds=_seeds(seeds, "seeds"))


def from_dict(content: Any, where: str) -> Definition:
    """A definition from plain values, as YAML gives them.

    :param where: what to call it in errors: a file or a leaderboard's name.
    :raises UsageError: one line that says where, what came and what was expected.
    """
    values.check_keys(content, where, required=("name", "seeds", "benchmarks"), optional=("description", "resources"))
    benchmarks = values.mapping(content["benchmarks"], f"{where}: benchmarks")
    # beside those that have the benchmark's own name
    figures = ["overview", *(f"{name}-{what}" for name in benchmarks for what in ("measures", "tasks"))]
    values.folder_names(benchmarks, f"{where}: benchmarks", taken=[*_RESULTS, *figures])
    return Definition(
        name=values.folder_name(content["name"], f"{where}: name"),
        description=values.string(content.get("description", ""), f"{where}: description"),
        seeds=_seeds(content["seeds"], f"{where}: seeds"),
        benchmarks=tuple(_benchmark(name, spec, f"{where}: {name}") for name, spec in benchmarks.items()),
        resources=_resources(content.get("resources"), where),
    )


def _packaged() -> dict[str, str]:
    """Name -> text of the definitions that come with the package; those in a folder are called folder/name."""
    folder = importlib.resources.files("ftml_bench.leaderboards")
    folders = {"": folder, "ablations/": folder / "ablations"}
    return {
        within + file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for within, place in folders.items()
        for file in place.iterdir()
        if file.name.endswith(".yaml")
    }


def _benchmark(name: str, content: Any, where: str) -> BenchmarkSpec:
    values.check_keys(
        content,
        where,
        required=("benchmark", "steps", "optimizer", "strategies"),
        optional=("settings", "model", "arrivals", "threshold", "checkpoints", "measures"),
    )
    benchmark = values.string(content["benchmark"], f"{where}: benchmark")
    _known("benchmark", benchmark, where)
    optimizer = _optimizer(content["optimizer"], f"{where}: optimizer")
    rows = values.mapping(content["strategies"], f"{where}: strategies")
    values.folder_names(rows, f"{where}: strategies")
    return BenchmarkSpec(
        name=name,
        benchmark=benchmark,
        settings=values.settings_of(_given(content.get("settings")), f"{where}: settings", own={"seed"}),
        model=_model(content.get("model"), where),
        arrivals=_arrivals(content.get("arrivals"), f"{where}: arrivals"),
        threshold=_threshold(content.get("threshold"), f"{where}: threshold"),
        checkpoints=_checkpoints(content.get("checkpoints"), f"{where}: checkpoints"),
        steps=values.size(content["steps"], f"{where}: steps"),
        optimizer=optimizer,
        rows=tuple(_row(row, settings, optimizer, f"{where}: {row}") for row, settings in rows.items()),
        measures=_measures(content.get("measures"), f"{where}: measures"),
    )


def _row(name: str, content: Any, optimizer: dict[str, Any], where: str) -> Row:
    settings = dict(values.settings_of(_given(content), where, own=GIVEN_BY_CELL - {"model", "optimizer"}))
    strategy = values.string(settings.pop("strategy", name), f"{where}: strategy")
    _known("strategy", strategy, where)
    comparator = settings.pop("comparator", False)
    if not isinstance(comparator, bool):
        raise UsageError(f"{where}: comparator: expected true or false, got {values.shown(comparator)}")
    own = values.settings_of(_given(settings.pop("optimizer", None)), f"{where}: optimizer", own=set())
    # Keywords of one optimiser mean nothing to another: a row that names one says all of it.
    own = own if "name" in own else {**optimizer, **own}
    model = _model(settings.pop("model", None), where)
    resources = _resources(settings.pop("resources", None), where)
    return Row(name, strategy, _optimizer(own, f"{where}: optimizer"), settings, model, comparator, resources)


def _given(value: Any) -> Any:
    """What a key says that may be left empty, as `FTML:` is."""
    return {} if value is None else value


def _model(value: Any, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    model = values.choice(value, f"{where}: model")
    _known("model", model["name"], where)
    return model


def _resources(value: Any, where: str) -> Resources:
    return USUAL if value is None else resources_of(value, f"{where}: resources")


def _optimizer(value: Any, where: str) -> dict[str, Any]:
    optimizer = values.choice(value, where)
    if "params" in optimizer:
        raise UsageError(f"{where}: 'params' cannot be set here: they are the model's parameters")
    if "then" in optimizer:
        then, at = optimizer["then"], f"{where}: then"
        values.check_keys(then, at, required=("after_steps", "lr"), optional=())
        values.size(then["after_steps"], f"{at}: after_steps")
        if not values.number(then["lr"], f"{at}: lr") > 0:
            raise UsageError(f"{at}: lr: expected a number above 0, got {then['lr']:g}")
    if "clip" in optimizer and not values.number(optimizer["clip"], f"{where}: clip") > 0:
        raise UsageError(f"{where}: clip: expected a number above 0, got {optimizer['clip']:g}")
    return optimizer


def _spec_to_dict(spec: BenchmarkSpec) -> dict[str, Any]:
    content: dict[str, Any] = {"benchmark": spec.benchmark, "settings": spec.settings, "model": spec.model}
    content["arrivals"] = list(spec.arrivals) if isinstance(spec.arrivals, tuple) else spec.arrivals
    content["threshold"] = None if spec.threshold is None else list(spec.threshold)
    content["checkpoints"] = None if spec.checkpoints is None else list(spec.checkpoints)
    # What is seldom said is written only where it is, so that the hash of every other definition stays.
    if spec.measures is not None:
        content["measures"] = list(spec.measures)
    rows = {row.name: _row_to_dict(row) for row in spec.rows}
    return {**content, "steps": spec.steps, "optimizer": spec.optimizer, "strategies": rows}


def _row_to_dict(row: Row) -> dict[str, Any]:
    own: dict[str, Any] = {} if row.model is None else {"model": row.model}
    if row.comparator:
        own["comparator"] = True
    own |= _resources_to_dict(row.resources)
    return {"strategy": row.strategy, "optimizer": row.optimizer, **own, **row.settings}


def _resources_to_dict(resources: Resources) -> dict[str, Any]:
    said = resources.to_dict()
    return {"resources": said} if said else {}


def _known(kind: str, name: str, where: str) -> None:
    """Refuses a name that the registry does not know, and says where in the definition it stands."""
    try:
        registry.resolve(kind, name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = values.filled_list(value, where)
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < values.LARGEST:
            raise UsageError(f"{where}: expected whole numbers of at least 0, got {values.shown(seed)}")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UsageError(f"{where}: {seed} stands there more than once")
    return tuple(seeds)


def _arrivals(value: Any, where: str) -> int | tuple[int, ...] | None:
    if value is None or isinstance(value, int):
        return None if value is None else values.size(value, where)
    return tuple(values.size(size, where) for size in values.filled_list(value, where))


def _checkpoints(value: Any, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    sizes = [values.size(size, where) for size in values.filled_list(value, where)]
    for before, after in itertools.pairwise(sizes):
        if after <= before:
            raise UsageError(f"{where}: expected increasing numbers, got {after} after {before}")
    return tuple(sizes)


def _measures(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [values.string(name, where) for name in values.filled_list(value, where)]
    for name in names:
        if name not in MEASURES:
            raise UsageError(f"{where}: {unknown('measure', name, MEASURES)}")
    return tuple(dict.fromkeys(names))


def _threshold(value: Any, where: str) -> tuple[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise UsageError(f"{where}: expected [metric, value] such as [accuracy, 0.8], got {values.shown(value)}")
    metric = values.string(value[0], where)
    if metric not in LARGER_IS_BETTER:
        raise UsageError(f"{where}: {unknown('metric', metric, LARGER_IS_BETTER)}")
    number = values.number(value[1], where)
    if metric == "accuracy" and not 0 < number <= 1:
        raise UsageError(f"{where}: an accuracy lies in (0, 1], got {number:g} (80 % is 0.8)")
    if not number > 0:
        raise UsageError(f"{where}: expected a number above 0, got {number:g}")
    return metric, float(number)
