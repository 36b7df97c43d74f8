"""What a leaderboard is: a YAML definition, checked, and the cells (benchmark x row x seed) that it stands for.

Everything is checked here that can be checked without importing torch: keys, types, sizes, names. Whether a class
takes a keyword, or an arrival reaches a checkpoint, `ftml_bench.runs.cell.check` says.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ftml_bench import registry
from ftml_bench.errors import UsageError, unknown
from ftml_bench.metrics import curves
from ftml_bench.metrics.measures import MEASURES
from ftml_bench.runs import fields, values
from ftml_bench.runs.fields import Rate, Several, Size, Text
from ftml_bench.runs.resources import USUAL, Resources
from ftml_bench.runs.signals import put_off
from ftml_bench.sizes import SCORES

# What lies in a leaderboard's folder beside the benchmarks.
_RESULTS = ("leaderboard.yaml", "leaderboard.md", "leaderboard.csv", "seeds.csv", "report.html", "figures")
_OF_BENCHMARK = ("results.tfevents",)  # what lies in a benchmark's beside the rows

# What the cell decides itself, so that no row can differ in it; a row may have a model and an optimiser of its own.
GIVEN_BY_CELL = {"model", "optimizer", "criterion", "steps", "evaluator", "eval_mb_size", "device", "plugins", "seed"}


def _registered(kind: str) -> AfterValidator:
    return AfterValidator(lambda name: registry.resolve(kind, name) and name)


def _one_of(kind: str, names: Collection[str], name: str) -> str:
    if name not in names:
        raise unknown(kind, name, names)
    return name


def _increasing(sizes: tuple[int, ...]) -> tuple[int, ...]:
    for before, after in itertools.pairwise(sizes):
        if after <= before:
            raise ValueError(f"expected increasing numbers, got {after} after {before}")
    return sizes


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ValueError(f"{seed} stands there more than once")
    return seeds


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _possible(threshold: tuple[str, float]) -> tuple[str, float]:
    curves.Threshold(*threshold)
    return threshold


Metric = Annotated[Text, AfterValidator(partial(_one_of, "metric", curves.LARGER_IS_BETTER))]
Measure = Annotated[Text, AfterValidator(partial(_one_of, "measure", MEASURES))]
Threshold = Annotated[
    tuple[Metric, Rate],
    Field(strict=True),
    fields.AS_TUPLE,
    fields.expected("[metric, value] such as [accuracy, 0.8]"),
    AfterValidator(_possible),
]


class Then(fields.Model):
    """Changes the learning rate once."""

    after_steps: Size = Field(description="training steps of the whole stream before it changes")
    lr: Rate = Field(description="the learning rate from there on")


class OptimizerKeys(fields.Keywords):
    """An outer optimiser. Every other key is a keyword of its class."""

    given = frozenset({"params"})

    name: Text = Field(description="a class of torch.optim")
    # Missing or said, not null.
    then: Then = Field(None, description="another learning rate later on")  # type: ignore[assignment]
    clip: Rate = Field(None, description="every entry of the gradients is cut to [-clip, clip]")  # type: ignore[assignment]


class ModelKeys(fields.Keywords):
    """A model. Every other key is a keyword of its constructor."""

    name: Annotated[Text, _registered("model")] = Field(description="as `ftml-bench list` says, or module:Class")


class StreamKeys(fields.Keywords):
    """Keywords of a stream's constructor."""

    given = frozenset({"seed"})


Optimizer = Annotated[dict[str, Any], fields.as_written(OptimizerKeys)]
Net = Annotated[dict[str, Any], fields.as_written(ModelKeys)]
Asked = Annotated[Resources, fields.MAY_BE_EMPTY]


class Row(fields.Named, fields.Keywords):
    """A row of the table: a strategy with its settings. Every other key is a keyword of the strategy's constructor.

    Its optimiser is complete: the benchmark's with the keywords that the row changes, or the one that the row names.
    """

    given = frozenset(GIVEN_BY_CELL - {"model", "optimizer"})
    seldom = frozenset({"model", "comparator", "resources"})

    # The row's name, if it says none.
    strategy: Annotated[Text, _registered("strategy")] = Field(description="as `ftml-bench list` says, or module:Class")
    optimizer: Optimizer = Field(description="what is other than the benchmark's, or one with a name of its own")
    model: Net | None = Field(None, description="a model of its own; else the benchmark's")
    comparator: fields.Flag = Field(
        False, description="no competitor: trained on all rounds beforehand, the best meta-learner in hindsight"
    )
    resources: Asked = Field(USUAL, description="what it asks for, but for what the leaderboard says for all")

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of the strategy's constructor."""
        return self.model_extra or {}


ROW_KEYS = ("strategy", "optimizer", "model")  # that most rows have beside keywords of the constructor


class BenchmarkSpec(fields.Named):
    """A benchmark of a leaderboard and its rows. None: what the benchmark itself proposes."""

    # so that the hash of every other definition stays
    seldom = frozenset({"measures", "warmup_rounds", "warmup_datapoints", "warmup_steps", "score"})

    benchmark: Annotated[Text, _registered("benchmark")] = Field(
        description="as `ftml-bench list` says, or module:Class"
    )
    settings: Annotated[dict[str, Any], fields.as_written(StreamKeys), fields.MAY_BE_EMPTY] = Field(
        {}, description="keywords of its constructor"
    )
    model: Net | None = Field(None, description="the model of every row that has none of its own")
    arrivals: fields.OneOrSeveral[Size] | None = Field(None, description="datapoints of every arrival, or each in turn")
    threshold: Threshold | None = Field(None, description="[metric, value]: the proficiency γ")
    checkpoints: Annotated[Several[Size], AfterValidator(_increasing)] | None = Field(
        None, description="numbers of datapoints, increasing, at which performance is reported"
    )
    measures: Annotated[Several[Measure], AfterValidator(_once)] | None = Field(
        None, description="what else is measured round by round"
    )
    warmup_rounds: Size | None = Field(
        None, description="so many first rounds are known before the stream begins, and not evaluated"
    )
    warmup_datapoints: Size | None = Field(None, description="of each of them; none said: all of a round")
    warmup_steps: Size | None = Field(
        None, description="training steps on them, in all; none said: for each as many as an arrival's"
    )
    score: Annotated[Text, AfterValidator(partial(_one_of, "score", SCORES))] | None = Field(
        None, description="what tests a learner after an arrival: held_out (none said), or next_arrival"
    )
    steps: Size = Field(description="training steps an arrival, the same for every row")
    optimizer: Optimizer = Field(description="the outer optimiser: what a row does not change of it")
    strategies: fields.ByName[Row] = Field(description="the rows of the table, by name")

    @field_validator("strategies", mode="before")
    @classmethod
    def _in_full(cls, rows: Any, info: ValidationInfo) -> Any:
        """A row has a strategy and an optimiser, also where it does not say them."""
        if not isinstance(rows, dict):
            return rows
        values.folder_names(rows, taken=_OF_BENCHMARK)
        full = {}
        for name, row in rows.items():
            row = {} if row is None else row
            if isinstance(row, dict):
                own = {} if row.get("optimizer") is None else row["optimizer"]
                # Keywords of one optimiser mean nothing to another: a row that names one says all of it.
                if isinstance(own, dict) and "name" not in own:
                    own = {**info.data.get("optimizer", {}), **own}
                row = {"strategy": name, **row, "optimizer": own}
            full[name] = row
        return full

    @model_validator(mode="after")
    def _sound(self) -> BenchmarkSpec:
        for key in ("warmup_datapoints", "warmup_steps"):
            if getattr(self, key) is not None and self.warmup_rounds is None:
                raise ValueError(f"{key}: expected warmup_rounds beside it")
        if other := self.other_than_all_rounds:
            if self.measures:
                raise ValueError(f"{self.measures[0]} is of the held-out data of all rounds: expected no {other}")
            for row in self.rows:
                if row.comparator:
                    raise ValueError(f"{row.name} is a comparator, which knows all rounds: expected no {other}")
        if self.rows and all(row.comparator for row in self.rows):
            raise ValueError(f"{self.rows[0].name} is a comparator: expected a row beside it that is none")
        return self

    @property
    def other_than_all_rounds(self) -> str:
        """The key by which evaluations are not of the held-out data of all rounds; empty where they are."""
        if self.warmup_rounds is not None:
            return "warmup_rounds"
        return "score: next_arrival" if self.score == "next_arrival" else ""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows in the order of the table."""
        return tuple(self.strategies.values())

    def row(self, name: str) -> Row:
        """The row of that name."""
        return self.strategies[name]


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


class Definition(fields.Model):
    """A leaderboard, checked. Make one with `load` or `from_dict`."""

    seldom = frozenset({"resources"})

    name: fields.FolderName = Field(description="the name of its folder in runs/, too")
    description: Text = Field("", description="a line for people")
    seeds: Annotated[Several[fields.Seed], AfterValidator(_different)] = Field(description="every row is run with each")
    resources: Asked = Field(USUAL, description="what a cell asks of a machine of a cluster")
    by_name: fields.ByName[BenchmarkSpec] = Field(alias="benchmarks", description="streams by name, each with its rows")

    @field_validator("by_name", mode="before")
    @classmethod
    def _folders(cls, benchmarks: Any) -> Any:
        if isinstance(benchmarks, dict):
            # beside those that have the benchmark's own name
            figures = ["overview", *(f"{name}-{what}" for name in benchmarks for what in ("measures", "tasks"))]
            values.folder_names(benchmarks, taken=[*_RESULTS, *figures])
        return benchmarks

    @property
    def benchmarks(self) -> tuple[BenchmarkSpec, ...]:
        """The benchmarks in the order of the definition."""
        return tuple(self.by_name.values())

    def benchmark(self, name: str) -> BenchmarkSpec:
        """The benchmark of that name."""
        return self.by_name[name]

    def cells(self) -> list[Cell]:
        """All cells, in the definition's order, the seeds of a row together."""
        return [Cell(spec.name, row.name, seed) for spec in self.benchmarks for row in spec.rows for seed in self.seeds]

    def to_dict(self) -> dict[str, Any]:
        """Plain values in a fixed form, defaults written out; `from_dict` makes an equal definition of them."""
        with put_off():  # pydantic would make an error of its own of a signal
            return self.model_dump(mode="json", by_alias=True)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that change with whatever could change a result: not description and resources."""
        return self._hashes[0]

    def includes(self, other_hash: str | None) -> bool:
        """Whether a hash is this definition's, or that of the same with its first seeds only: others came later."""
        return other_hash in self._hashes

    @cached_property
    def _hashes(self) -> list[str]:
        """Of itself, and of itself with one seed less, and so on; once for all cells of a folder."""
        content = self.to_dict()
        for unimportant in ("description", "resources"):
            content.pop(unimportant, None)
        for spec in content["benchmarks"].values():
            for row in spec["strategies"].values():
                row.pop("resources", None)
        return [_hash(content | {"seeds": self.seeds[:n]}) for n in range(len(self.seeds), 0, -1)]


def _hash(content: dict[str, Any]) -> str:
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
            file = f"{name_or_path}.yaml"
            or_file = f"{file}, which is here" if Path(file).is_file() else "the path of a .yaml file"
            raise UsageError(f"{unknown('leaderboard', name_or_path, texts)} or {or_file}")
        return from_dict(values.parse_yaml(texts[name_or_path], name_or_path), name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the definition {name_or_path}: not UTF-8 text") from error
    except (OSError, ValueError) as error:  # of a name with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the definition {name_or_path}: {reason}") from error
    return from_dict(values.parse_yaml(text, name_or_path), name_or_path)


def with_seeds(definition: Definition, seeds: list[int]) -> Definition:
    """The same leaderboard for other seeds.

    :raises UsageError: no seeds, a negative or a repeated one.
    """
    return from_dict(definition.to_dict() | {"seeds": seeds}, definition.name)


def from_dict(content: Any, where: str) -> Definition:
    """A definition from plain values, as YAML gives them.

    :param where: what to call it in errors: a file or a leaderboard's name.
    :raises UsageError: one line that says where, what came and what was expected.
    """
    try:
        return Definition.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{where}: {fields.in_words(error, content)}") from None


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
