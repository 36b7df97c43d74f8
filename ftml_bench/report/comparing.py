"""Two leaderboards' folders against each other, row by row: what got better or worse beyond noise."""

from __future__ import annotations

from pathlib import Path

from ftml_bench.errors import UsageError
from ftml_bench.report.benchmark import certainty, interval, signed
from ftml_bench.report.contents import Contents, compute
from ftml_bench.report.remarks import RUN_WITH
from ftml_bench.report.tables import NONE, Table
from ftml_bench.results.pairs import Pair
from ftml_bench.results.quantities import compare, compared, judge
from ftml_bench.results.statistics import BenchmarkResult, RowResult
from ftml_bench.runs.values import shown
from ftml_bench.runs.versions import UNSAID

#: Key of a record's `protocol` -> what it is, and what it is where a record says nothing (None: not known).
_PROTOCOL: dict[str, tuple[str, object]] = {
    "version": ("version of the protocol", UNSAID),
    "benchmark_version": ("version of the stream", UNSAID),
    "image_set": ("set of images", "none"),
    "score": ("score", "held_out"),
    "warmup": ("warm-up", {}),
    "rounds": ("number of rounds", None),
    "datapoints_per_round": ("number of datapoints a round", None),
    "held_out_per_round": ("number of held-out points a round", None),
}


def tables(old: Path, new: Path) -> list[Table]:
    """A table of every benchmark that both have, and one of what they were run with.

    :raises UsageError: one is no leaderboard's folder, or the two share no benchmark that is judged alike.
    """
    before, after = compute(old), compute(new)
    found, apart = [], []
    for result in after.results:
        other = next((one for one in before.results if one.spec.name == result.spec.name), None)
        why = "is not in both" if other is None else _why_not(other, result) or _other_protocol(before, after, result)
        if other is None or why:
            apart.append(f"{result.spec.name} {why}: not compared")
        else:
            found.append(_of_benchmark(other, result))
    if not found:
        raise UsageError(f"{old} and {new} have no benchmark to compare: {'; '.join(apart) or 'no results'}")
    return [*found, _of_versions(before, after, apart)]


def _why_not(old: BenchmarkResult, new: BenchmarkResult) -> str:
    if old.spec.benchmark != new.spec.benchmark:
        return f"has another stream ({old.spec.benchmark} and {new.spec.benchmark})"
    if found := _stream_settings(old.spec.settings, new.spec.settings):
        return f"has another stream ({', '.join(found)})"
    for what, before, after in (
        ("threshold", old.threshold, new.threshold),
        ("checkpoints", old.checkpoints, new.checkpoints),
        ("metric", old.measure, new.measure),
    ):
        if before != after:
            return f"has another {what}"
    return ""


def _other_protocol(old: Contents, new: Contents, result: BenchmarkResult) -> str:
    """How rounds are made, begun and tested, where it is not the same; all cells of one folder are alike."""
    before, after = (
        next(run.record["protocol"] for cell, run in side.runs if run.ended and cell.benchmark == result.spec.name)
        for side in (old, new)
    )
    for key, (what, unsaid) in _PROTOCOL.items():
        ours, theirs = (unsaid if side.get(key) is None else side[key] for side in (before, after))
        if None not in (ours, theirs) and ours != theirs:
            return f"has another {what} ({_in_words(ours)} and {_in_words(theirs)})"
    return ""


def _in_words(value: object) -> str:
    """A mapping without its braces."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(one)}" for key, one in value.items()) or "none"
    return shown(value)


def _stream_settings(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """The settings of a stream that are not the same, each with its value in OLD and in NEW."""
    return [
        f"{name} {_said(old.get(name))} and {_said(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _of_benchmark(old: BenchmarkResult, new: BenchmarkResult) -> Table:
    pairs = [(next((one for one in old.rows if one.row.name == row.row.name), None), row) for row in new.rows]
    found: list[list[list[str]]] = [[] for _ in pairs]  # of every row the lines
    most = 0
    names_of_old = {quantity.name for quantity in compared(old)}
    for quantity in (one for one in compared(new) if one.name in names_of_old):
        judged = judge([None if other is None else compare(row, other, quantity) for other, row in pairs])
        for lines, (other, row), (pair, p, verdict) in zip(found, pairs, judged, strict=True):
            if other is None or pair is None or p is None or verdict is None:
                if other is not None:
                    lines.append([row.row.name, quantity.title, *[NONE] * 5, "no seed that both have finished"])
                continue
            most = max(most, pair.seeds)
            said = verdict + (" (other settings)" if _settings(old, other) != _settings(new, row) else "")
            lines.append([row.row.name, quantity.title, *_numbers(pair, quantity.decimals), f"{p:.3f}",
                          str(pair.seeds), said])  # fmt: skip
    rows = [
        line
        for lines, (other, row) in zip(found, pairs, strict=True)
        for line in (lines if other is not None else [[row.row.name, "only in NEW", *[NONE] * 6]])
    ]
    names = {row.row.name for row in new.rows}
    rows += [[row.row.name, "only in OLD", *[NONE] * 6] for row in old.rows if row.row.name not in names]
    columns = ["strategy", "quantity", "NEW - OLD", "95 % interval", "p", "p (Holm)", "seeds", "NEW is"]
    notes = [
        "Over the second half of the rounds (area: all), paired by seed and round; less is better. Interval: bootstrap "
        "over seeds and their rounds. p: two-sided, exact sign flips over seeds; Holm: corrected for the rows. Ahead "
        "or behind: that is at most 0.05 and the interval leaves out 0; level: it lies within 5 % of OLD's mean."
    ]
    if others := _other_settings(old, new, pairs):
        notes.append(f"OLD and NEW differ in settings, which may be all that is seen here: {others}.")
    if most:
        notes.append(certainty(most, sum(other is not None for other, _ in pairs)))
    return Table(f"{new.spec.name}: NEW against OLD", columns, rows, notes)


def _numbers(pair: Pair, decimals: int) -> list[str]:
    return [signed(pair.mean, decimals), interval(pair, decimals).strip(" ()") or NONE, f"{pair.p:.3f}"]


def _settings(result: BenchmarkResult, row: RowResult) -> tuple[object, ...]:
    """Whatever a row's numbers hang on beside versions."""
    spec = result.spec
    return row.row, spec.steps, spec.arrivals, spec.model


def _other_settings(old: BenchmarkResult, new: BenchmarkResult, pairs: list[tuple[RowResult | None, RowResult]]) -> str:
    """What a benchmark was run with in OLD and in NEW, where it is not the same, and the rows with other settings."""
    found = []
    for what in ("steps", "arrivals", "model"):
        before, after = getattr(old.spec, what), getattr(new.spec, what)
        if before != after:
            found.append(f"{what} {_said(before)} and {_said(after)}")
    rows = [row.row.name for other, row in pairs if other is not None and other.row != row.row]
    return "; ".join([*found, *([f"those of {', '.join(rows)}"] if rows else [])])


def _said(value: object) -> str:
    return "the stream's own" if value is None else shown(value)


def _of_versions(old: Contents, new: Contents, apart: list[str]) -> Table:
    name, name_of_new = old.definition.name, new.definition.name
    rows = [["leaderboard", name, name_of_new, "the same" if name == name_of_new else "other"]]
    kinds = {**RUN_WITH, "commit": lambda record: record.get("commit"), "machine": lambda record: record.get("machine")}
    for what, of in kinds.items():
        before, after = (
            ", ".join(sorted({str(of(run.record)) for _, run in side.runs if run.ended})) for side in (old, new)
        )
        rows.append([what, before, after, "the same" if before == after else "other"])
    curves = {cell: repr(run.curve) for cell, run in old.runs if run.ended}  # as text: NaN is not equal to itself
    ended = [(cell, run) for cell, run in new.runs if run.ended]
    equal = sum(curves.get(cell) == repr(run.curve) for cell, run in ended)
    notes = [*apart, f"{equal} of {len(ended)} cells of NEW have the curve of OLD, bit for bit."]
    return Table("Run with", ["", "OLD", "NEW", ""], rows, notes)
