"""The committed values: how they lie in `values.json`, and what is made of them and of new ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftml_bench import protocol, registry

from .outcome import Difference
from .running import COST, COUNTS, NUMBERS, SEED, Quantities
from .scenarios import ROWS, STEPS, STREAMS

FILE = Path(__file__).with_name("values.json")
TOLERANCE = 1e-5  # relative; engines differ from each other by 1e-10
# A number that moves by more than a tenth of it after a change of this size in the first weights is not committed.
# Processors, which add in different orders, differ by a hundredth of what that moves.
CHANGE = 1e-13
UNDECIDED = "undecided"  # stands in its place
COUNTED_WITH = ("torch", "avalanche-lib", "higher")  # on whose versions counts depend
Table = dict[str, Any]


def table(values: dict[str, Quantities]) -> Table:
    """What `values.json` holds: values by scenario, and what they depend on."""
    return {
        "protocol": {"version": protocol.VERSION, "seed": SEED, "steps": STEPS},
        "counted with": {package: ".".join(version(package).split(".")[:2]) for package in COUNTED_WITH},
        "streams": {
            name: {
                "version": getattr(registry.load("benchmark", name), "version", None),
                "settings": stream.settings,
                "arrivals": stream.arrivals,
                "lr": stream.lr,
                "model": stream.model,
            }
            for name, stream in STREAMS.items()
            if name in registry.BENCHMARKS
        },
        "rows": {
            name: {"strategy": row.strategy, "settings": row.settings, "model": row.model} for name, row in ROWS.items()
        },
        "values": values,
    }


def differences(committed: Table, found: Table, left_out: set[str]) -> Iterator[Difference]:
    """Where `found` is not what is committed; in counts only if they were made with the same versions.

    :param left_out: scenarios that could not be computed.
    """
    yield from _differences_of("protocol", committed["protocol"], found["protocol"])
    for part in ("streams", "rows"):
        for name in {**committed[part], **found[part]}:
            yield from _differences_of(f"{part}: {name}", committed[part].get(name, {}), found[part].get(name, {}))
    with_counts = not other_versions(committed, found)
    for name, values in found["values"].items():
        if name not in committed["values"]:
            yield Difference(name, "all", "no value is committed", "computed")
            continue
        for quantity, old, new in _pairs(committed["values"][name], values):
            if not alike(quantity, old, new) and (quantity not in COUNTS or with_counts):
                yield Difference(name, quantity, old, new)
    for name in committed["values"]:
        if name not in found["values"] and name not in left_out:
            yield Difference(name, "all", "committed", "no scenario computes it")


def _differences_of(where: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    for quantity in {**old, **new}:
        if old.get(quantity) != new.get(quantity):
            yield Difference(where, quantity, old.get(quantity), new.get(quantity))


def _pairs(old: Quantities, new: Quantities) -> Iterator[tuple[str, Any, Any]]:
    """(quantity, old, new), number by number."""
    for quantity in {**old, **new}:
        before, now = old.get(quantity), new.get(quantity)
        if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
            for number, pair in enumerate(zip(before, now, strict=True), 1):
                yield f"{quantity} after arrival {number}", *pair
        else:
            yield quantity, before, now


def alike(quantity: str, old: Any, new: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two values of a quantity are the same: by tolerance for numbers; what is no finite number is not.

    With what is `UNDECIDED` there is nothing to compare.
    """
    if quantity.split(" after ")[0] not in NUMBERS:
        return old == new
    if UNDECIDED in (old, new):
        return True
    if not (isinstance(old, float) and isinstance(new, float)):
        return old == new
    return math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-4 * tolerance)


def decided(values: dict[str, Quantities], changed: dict[str, Quantities]) -> dict[str, Quantities]:
    """`values` with `UNDECIDED` for each number that rounding decides, and in a list for those after it.

    :param changed: the same scenarios' values after `CHANGE` of their first weights.
    """

    def kept(quantity: str, value: Any, after: Any) -> Any:
        if isinstance(value, list):
            each = [kept(quantity, *pair) for pair in zip(value, after, strict=True)]
            first = each.index(UNDECIDED) if UNDECIDED in each else len(each)
            return each[:first] + [UNDECIDED] * (len(each) - first)
        return value if alike(quantity, value, after, TOLERANCE / 10) or not math.isfinite(value) else UNDECIDED

    return {
        name: {q: kept(q, v, changed[name][q]) if q in NUMBERS else v for q, v in of.items()}
        for name, of in values.items()
    }


def undecided(committed: Table) -> dict[str, int]:
    """How many numbers of each scenario rounding decides; those without any are not named."""
    counts = {name: sum(new == UNDECIDED for _, _, new in _pairs(of, of)) for name, of in committed["values"].items()}
    return {name: count for name, count in counts.items() if count}


def other_versions(committed: Table, found: Table) -> str:
    """The packages that counts were made with in other versions, in words; empty if there are none."""
    old, new = committed["counted with"], found["counted with"]
    return "; ".join(f"{name} {old.get(name)}, here {new[name]}" for name in new if old.get(name) != new[name])


def made_anew(committed: Table, found: Table, left_out: set[str]) -> Table:
    """The table to write: `found`, and what is committed where nothing has changed or data are not at hand.

    :raises ValueError: if a number has changed although nothing says so (no version, no setting), is not finite, or
        counts of what is left out would stand beside those of other versions.
    """
    if left_out and committed["values"] and (versions := other_versions(committed, found)):
        raise ValueError(f"counts are made with {versions}, and {len(left_out)} scenarios would keep theirs")
    values: dict[str, Quantities] = {}
    for name, new in found["values"].items():
        old = committed["values"].get(name)
        numbers = {q: v for q, v in new.items() if q in NUMBERS + COST}
        bad = [q for q, v in numbers.items() if not all(x == UNDECIDED or math.isfinite(x) for x in _listed(v))]
        if bad:
            raise ValueError(f"{name}: {bad[0]} is no finite number: {numbers[bad[0]]}")
        same = [q for q in numbers if old and all(alike(*pair) for pair in _pairs({q: old.get(q)}, {q: new[q]}))]
        if old and len(same) < len(numbers) and not _is_said(name, committed, found):
            changed = next(q for q in numbers if q not in same)
            raise ValueError(
                f"{name}: {changed} is {new[changed]} instead of {old.get(changed)}, and nothing says so: raise the "
                f"version of the stream or of the protocol"
            )
        values[name] = {q: _as_it_was(old[q], v) if old and q in same else v for q, v in new.items()}
    kept = {name: old for name, old in committed["values"].items() if name in left_out}
    return {**found, "values": dict(sorted({**values, **kept}.items()))}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_it_was(old: Any, new: Any) -> Any:
    """The old number of two that are alike, unless rounding decides or decided it."""
    if isinstance(new, list):
        return [_as_it_was(*pair) for pair in zip(old, new, strict=True)]
    return new if UNDECIDED in (old, new) else old


def _is_said(name: str, committed: Table, found: Table) -> bool:
    """Whether a version or a setting has changed on which the numbers of a scenario depend."""
    stream, row, *_ = name.split()
    return any(
        old != new
        for old, new in (
            (committed["protocol"], found["protocol"]),
            (committed["streams"].get(stream), found["streams"].get(stream)),
            (committed["rows"].get(row), found["rows"].get(row)),
        )
    )


def read() -> Table:
    """The committed table; an empty one if there is none."""
    if not FILE.is_file():
        return {"protocol": {}, "counted with": {}, "streams": {}, "rows": {}, "values": {}}
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(new: Table) -> None:
    """Write a table, an entry a line."""
    parts = []
    for part, entries in new.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
