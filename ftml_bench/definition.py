"""What a leaderboard is: a YAML definition, checked, and the cells (benchmark x row x seed) that it stands for.

Everything is checked here that can be checked without importing torch: keys, types, sizes, names. Whether a class
takes a keyword, or an arrival reaches a checkpoint, `ftml_bench.cell.check` says.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ftml_bench import registry
from ftml_bench.curves import LARGER_IS_BETTER
from ftml_bench.errors import UsageError, unknown
from ftml_bench.measures import MEASURES

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()=-]*")
# Keywords of benchmarks, models and strategies that count something, by the names that the suite uses.
_SIZE_NAME = re.compile(r"rounds|steps|filters|heads|step_factor|\w+_(size|steps|per_round|per_class|classes|epochs)")
_RATE_NAME = re.compile(r"lr|\w+_lr")


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
    """

    name: str
    strategy: str
    optimizer: dict[str, Any]
    settings: dict[str, Any]
    model: dict[str, Any] | None = None
    comparator: bool = False


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
    :param measures: what else is measured round by round: names in `ftml_bench.measures.MEASURES`.
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
    """A leaderboard, checked. Make one with `load` or `from_dict`."""

    name: str
    description: str
    seeds: tuple[int, ...]
    benchmarks: tuple[BenchmarkSpec, ...]

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
            "benchmarks": {spec.name: _spec_to_dict(spec) for spec in self.benchmarks},
        }

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that change with whatever could change a result: all but the description."""
        content = {key: value for key, value in self.to_dict().items() if key != "description"}
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
        return from_dict(parse_yaml(texts[name_or_path], name_or_path), name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read the definition {name_or_path}: {reason}") from error
    return from_dict(parse_yaml(text, name_or_path), name_or_path)


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
    _keys(content, where, required=("name", "seeds", "benchmarks"), optional=("description",))
    benchmarks = _mapping(content["benchmarks"], f"{where}: benchmarks")
    return Definition(
        name=_folder_name(content["name"], f"{where}: name"),
        description=_string(content.get("description", ""), f"{where}: description"),
        seeds=_seeds(content["seeds"], f"{where}: seeds"),
        benchmarks=tuple(_benchmark(name, spec, f"{where}: {name}") for name, spec in benchmarks.items()),
    )


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text. 1e-3 is a number, as in YAML 1.2, and a key may stand only once in a mapping.

    :raises UsageError: not YAML; names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}:{line} {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without two of its traps: repeated keys, and 1e-3 read as a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"keys must be text, not {key!r}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _packaged() -> dict[str, str]:
    """Name -> text of the definitions that come with the package."""
    folder = importlib.resources.files("ftml_bench.leaderboards")
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def _benchmark(name: str, content: Any, where: str) -> BenchmarkSpec:
    _folder_name(name, where)
    _keys(
        content,
        where,
        required=("benchmark", "steps", "optimizer", "strategies"),
        optional=("settings", "model", "arrivals", "threshold", "checkpoints", "measures"),
    )
    benchmark = _string(content["benchmark"], f"{where}: benchmark")
    _known("benchmark", benchmark, where)
    optimizer = _optimizer(content["optimizer"], f"{where}: optimizer")
    rows = _mapping(content["strategies"], f"{where}: strategies")
    return BenchmarkSpec(
        name=name,
        benchmark=benchmark,
        settings=_settings(content.get("settings") or {}, f"{where}: settings", own=("seed",)),
        model=_model(content.get("model"), where),
        arrivals=_arrivals(content.get("arrivals"), f"{where}: arrivals"),
        threshold=_threshold(content.get("threshold"), f"{where}: threshold"),
        checkpoints=_checkpoints(content.get("checkpoints"), f"{where}: checkpoints"),
        steps=_size(content["steps"], f"{where}: steps"),
        optimizer=optimizer,
        rows=tuple(_row(row, settings, optimizer, f"{where}: {row}") for row, settings in rows.items()),
        measures=_measures(content.get("measures"), f"{where}: measures"),
    )


def _row(name: str, content: Any, optimizer: dict[str, Any], where: str) -> Row:
    _folder_name(name, where)
    settings = dict(_settings(content or {}, where, own=("seed", "steps")))
    strategy = _string(settings.pop("strategy", name), f"{where}: strategy")
    _known("strategy", strategy, where)
    comparator = settings.pop("comparator", False)
    if not isinstance(comparator, bool):
        raise UsageError(f"{where}: comparator: expected true or false, got {_shown(comparator)}")
    own = _settings(settings.pop("optimizer", None) or {}, f"{where}: optimizer", own=())
    # Keywords of one optimiser mean nothing to another: a row that names one says all of it.
    own = own if "name" in own else {**optimizer, **own}
    model = _model(settings.pop("model", None), where)
    return Row(name, strategy, _optimizer(own, f"{where}: optimizer"), settings, model, comparator)


def _model(value: Any, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    model = _choice(value, f"{where}: model")
    _known("model", model["name"], where)
    return model


def _optimizer(value: Any, where: str) -> dict[str, Any]:
    optimizer = _choice(value, where)
    if "then" in optimizer:
        then, at = optimizer["then"], f"{where}: then"
        _keys(then, at, required=("after_steps", "lr"), optional=())
        _size(then["after_steps"], f"{at}: after_steps")
        if not _number(then["lr"], f"{at}: lr") > 0:
            raise UsageError(f"{at}: lr: expected a number above 0, got {then['lr']:g}")
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
    return {"strategy": row.strategy, "optimizer": row.optimizer, **own, **row.settings}


def _known(kind: str, name: str, where: str) -> None:
    """Refuses a name that the registry does not know, and says where in the definition it stands."""
    try:
        registry.resolve(kind, name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{where}: expected keys with values, got {_shown(value)}")
    return value


def _keys(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    mapping = _mapping(value, where)
    for key in mapping:
        if key not in required + optional:
            raise UsageError(f"{where}: {unknown('key', key, required + optional)}")
    for key in required:
        if key not in mapping:
            raise UsageError(f"{where}: {key!r} is missing")


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected text, got {_shown(value)}")
    return value


def _folder_name(value: Any, where: str) -> str:
    if not _FOLDER_NAME.fullmatch(_string(value, where)) or value.endswith((" ", ".")):
        raise UsageError(
            f"{where}: {value!r} cannot be the name of a folder "
            "(a letter or digit first, then letters, digits, spaces and ._+()=-, no space or dot at the end)"
        )
    return value


def _size(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{where}: expected a whole number of at least 1, got {_shown(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{where}: expected a number, got {_shown(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{where}: expected a list with at least one entry, got {_shown(value)}")
    return list(value)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = _list(value, where)
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UsageError(f"{where}: expected whole numbers of at least 0, got {_shown(seed)}")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UsageError(f"{where}: {seed} stands there more than once")
    return tuple(seeds)


def _arrivals(value: Any, where: str) -> int | tuple[int, ...] | None:
    if value is None or isinstance(value, int):
        return None if value is None else _size(value, where)
    return tuple(_size(size, where) for size in _list(value, where))


def _checkpoints(value: Any, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    sizes = [_size(size, where) for size in _list(value, where)]
    for before, after in itertools.pairwise(sizes):
        if after <= before:
            raise UsageError(f"{where}: expected increasing numbers, got {after} after {before}")
    return tuple(sizes)


def _measures(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [_string(name, where) for name in _list(value, where)]
    for name in names:
        if name not in MEASURES:
            raise UsageError(f"{where}: {unknown('measure', name, MEASURES)}")
    return tuple(dict.fromkeys(names))


def _threshold(value: Any, where: str) -> tuple[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise UsageError(f"{where}: expected [metric, value] such as [accuracy, 0.8], got {_shown(value)}")
    metric = _string(value[0], where)
    if metric not in LARGER_IS_BETTER:
        raise UsageError(f"{where}: {unknown('metric', metric, LARGER_IS_BETTER)}")
    number = _number(value[1], where)
    if metric == "accuracy" and not 0 < number <= 1:
        raise UsageError(f"{where}: an accuracy lies in (0, 1], got {number:g} (80 % is 0.8)")
    if not number > 0:
        raise UsageError(f"{where}: expected a number above 0, got {number:g}")
    return metric, float(number)


def _choice(value: Any, where: str) -> dict[str, Any]:
    """{"name": ..., keyword: value, ...}: a class and its keywords."""
    choice = _settings(value, where, own=())
    if "name" not in choice:
        raise UsageError(f"{where}: 'name' is missing")
    _string(choice["name"], f"{where}: name")
    return choice


def _settings(value: Any, where: str, own: tuple[str, ...]) -> dict[str, Any]:
    """Keywords of a constructor; `own` are those that the suite itself passes."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected keys with values, got {_shown(value)}")
    for key, entry in value.items():
        if key in own:
            raise UsageError(f"{where}: {key!r} cannot be set here, the leaderboard says it for all rows")
        if not _is_plain(entry):
            raise UsageError(f"{where}: {key}: expected text, numbers, true or false, or lists, got {_shown(entry)}")
        for one in entry if isinstance(entry, list) else [entry]:
            if one is not None and _SIZE_NAME.fullmatch(key):
                _size(one, f"{where}: {key}")
            elif one is not None and _RATE_NAME.fullmatch(key) and not _number(one, f"{where}: {key}") > 0:
                raise UsageError(f"{where}: {key}: expected a number above 0, got {one:g}")
    return value


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it (YAML also has dates, sets and bytes)."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value as an error shows it: short, in one line."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
