"""What becomes of scenarios: their values, refusals that should be, and what should not be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ftml_bench.errors import UsageError

from .running import Quantities, has_data, run
from .scenarios import Scenario, refusal


@dataclass(frozen=True)
class Difference:
    """A quantity of a scenario, or of what scenarios share, that is not what it was."""

    where: str
    quantity: str
    expected: Any
    found: Any


@dataclass
class Outcome:
    """What became of all scenarios."""

    values: dict[str, Quantities] = field(default_factory=dict)
    refused: int = 0  # as they should be
    wrong: list[Difference] = field(default_factory=list)  # of what should run and does not, or the other way
    left_out: set[str] = field(default_factory=set)  # scenarios whose stream's data are not at hand


def compute(which: Iterable[Scenario], change: float = 0.0) -> Outcome:
    """Run scenarios one after the other, with their first weights changed by `change` of themselves."""
    outcome = Outcome()
    for scenario in which:
        if not has_data(scenario.stream):
            outcome.left_out.add(str(scenario))
            continue
        expected, found = refusal(scenario), None
        try:
            values = run(scenario, change)
        except UsageError as error:
            found = str(error)
        except Exception as error:  # the others are to be audited, too
            found = f"{type(error).__name__}: {error}"
        if expected != found:
            outcome.wrong.append(Difference(str(scenario), "refusal", expected or "none", found or "none: it runs"))
        elif found is None:
            outcome.values[str(scenario)] = values
        else:
            outcome.refused += 1
    return outcome
