"""What an inner step may be beside plain gradient descent: learned rates, and a penalty towards given weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftml_bench.errors import UsageError, unknown

Rates = Tensor | Mapping[str, Tensor]  # of one step: one for all parameters, or by their names

# How rates and anchors are called where they travel beside the weights; no parameter of a module has such a name.
RATE, ANCHOR = BESIDE = "rate ", "anchor "


@dataclass(frozen=True)
class InnerRule:
    """An inner step w' = w - r ∇(L(w) + penalty / 2 ‖w - anchor‖²), differentiable in rates and anchor too.

    :param rates: r: a tensor of one number, or by parameter name tensors of one number or of the parameter's shape
        (Meta-SGD, Li et al. 2017); or a sequence of such, one a step, of which the last goes on (MAML++, Antoniou et
        al. 2019). None: the engine's `inner_lr`.
    :param penalty: of the inner loss; 0: none.
    :param anchor: weights by name that it pulls the adapted ones towards; None: those that were adapted from
        (iMAML, Rajeswaran et al. 2019).
    :param implicit: iterations of conjugate gradients by which the derivative is that of the minimum of the penalised
        loss, which the inner steps are taken to have come to, not that of the steps; 0: that of the steps.
    """

    rates: Rates | Sequence[Rates] | None = None
    penalty: float = 0.0
    anchor: Mapping[str, Tensor] | None = None
    implicit: int = 0

    def tensors(self, parameters: Mapping[str, Tensor], adapted: Sequence[str]) -> dict[str, Tensor]:
        """Rates and anchors by the names under which they travel beside the weights.

        :raises UsageError: for rates of other parameters or shapes, an anchor that lacks some, or a minimum of nothing.
        """
        if self.implicit and not self.penalty > 0:
            raise UsageError(f"implicit={self.implicit}: expected a penalty above 0, got {self.penalty}")
        steps = enumerate(self.rates_by_step(parameters, adapted))
        found = {f"{RATE}{step} {name}": rate for step, rates in steps for name, rate in rates.items()}
        if self.penalty:
            anchor = parameters if self.anchor is None else self.anchor
            for name in adapted:
                if name not in anchor:
                    raise unknown("parameter of the anchor", name, anchor)
                found[f"{ANCHOR}{name}"] = anchor[name]
        return found

    def rates_by_step(self, parameters: Mapping[str, Tensor], adapted: Sequence[str]) -> list[dict[str, Tensor]]:
        """The rates of each step that has its own, by parameter name: of one number, or of the parameter's shape.

        :raises UsageError: for rates of other parameters or shapes.
        """
        if self.rates is not None and not self._steps():
            raise UsageError("the inner rates are an empty sequence: expected the rates of one step at least")
        found = [_by_name(rates, adapted) for rates in self._steps()]
        for name, rate in (pair for rates in found for pair in rates.items()):
            if rate.dim() and rate.shape != parameters[name].shape:
                raise UsageError(
                    f"the inner rate of {name} has the shape {tuple(rate.shape)}: expected one number, or the "
                    f"parameter's shape {tuple(parameters[name].shape)}"
                )
        return found

    @property
    def is_plain(self) -> bool:
        """Whether it is gradient descent by the engine's `inner_lr`."""
        return self.rates is None and not self.penalty

    def penalised(self, loss: Tensor, fast: Mapping[str, Tensor]) -> Tensor:
        """The loss of an inner step, with the penalty on the weights if there is one."""
        return loss + self.penalty / 2 * squared_distance(fast) if self.penalty else loss

    def rate(self, beside: Mapping[str, Tensor], step: int, name: str) -> Tensor:
        """The rate of a parameter in a step, from what travels beside the weights."""
        return beside[self.place(step, name)]

    def place(self, step: int, name: str) -> str:
        """Under which name the rate of a parameter in a step travels."""
        return f"{RATE}{min(step, len(self._steps()) - 1)} {name}"

    def descent(
        self, leaves: list[Tensor], beside: Mapping[str, Tensor], adapted: Sequence[str], inner_lr: float
    ) -> torch.optim.Optimizer:
        """What takes the steps of an update procedure on the adapted weights."""
        if self.rates is None:
            return torch.optim.SGD(leaves, lr=inner_lr)
        return _RatedDescent(leaves, lambda step: [self.rate(beside, step, name).detach() for name in adapted])

    def penalty_on(
        self, beside: Mapping[str, Tensor], adapted: Sequence[str]
    ) -> Callable[[Tensor, list[Tensor]], Tensor]:
        """`penalised` of the adapted weights in an update procedure, whose anchor stays where it is."""
        anchors = {name: t.detach().clone() for name, t in beside.items() if name.startswith(ANCHOR)}
        return lambda loss, leaves: self.penalised(loss, {**anchors, **dict(zip(adapted, leaves, strict=True))})

    def _steps(self) -> Sequence[Rates]:
        if self.rates is None:
            return []
        return [self.rates] if isinstance(self.rates, (Tensor, Mapping)) else list(self.rates)


PLAIN = InnerRule()


class _RatedDescent(torch.optim.Optimizer):
    """Gradient descent with a rate for each parameter and step."""

    def __init__(self, leaves: list[Tensor], rates: Callable[[int], list[Tensor]]) -> None:
        super().__init__(leaves, {})
        self._leaves, self._rates, self._step = leaves, rates, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for leaf, rate in zip(self._leaves, self._rates(self._step), strict=True):
            if leaf.grad is not None:
                leaf.sub_(rate * leaf.grad)
        self._step += 1


def _by_name(rates: Rates, adapted: Sequence[str]) -> dict[str, Tensor]:
    """The rates of one step for each adapted parameter."""
    if isinstance(rates, Tensor):
        if rates.numel() != 1:
            raise UsageError(
                f"an inner rate for all parameters has the shape {tuple(rates.shape)}: expected one number"
            )
        return dict.fromkeys(adapted, rates.reshape(()))
    for name in adapted:
        if name not in rates:
            raise UsageError(f"there is no inner rate for parameter {name}: expected one for each that is adapted")
    return {name: rates[name] for name in adapted}


def weights_among(fast: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what travels beside them."""
    return {name: w for name, w in fast.items() if not name.startswith(BESIDE)}


def squared_distance(fast: Mapping[str, Tensor]) -> Tensor:
    """‖w - anchor‖² over all weights that have an anchor, and over all tasks."""
    pairs = [(fast[name.removeprefix(ANCHOR)], anchor) for name, anchor in fast.items() if name.startswith(ANCHOR)]
    return torch.stack([(w - anchor).square().sum() for w, anchor in pairs]).sum()
