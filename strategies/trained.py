"""Learners that keep something for each trained parameter follow no layer that is frozen or unfrozen later."""

from __future__ import annotations

from torch import nn

from ftml_bench.errors import UsageError


def trained(model: nn.Module, own: str) -> frozenset[str]:
    """The names of the parameters that ask for a gradient, without those that the learner has added (`own`...)."""
    return frozenset(n for n, p in model.named_parameters() if p.requires_grad and not n.startswith(own))


def refuse_others(learner: str, before: frozenset[str], now: frozenset[str]) -> None:
    """See that the same parameters are trained as when the learner was built.

    :param learner: its name.
    :raises UsageError: if they are not.
    """
    if before != now:
        name = min(before ^ now)
        raise UsageError(
            f"parameter {name} has been {'frozen' if name in before else 'unfrozen'} since {learner} was built, which "
            f"keeps something for each of those that it began with: expected the same, or FTML"
        )
