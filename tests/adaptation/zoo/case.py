"""What is right for a kind, and what an engine makes of it.

The right values come from a deep copy of the model for each task, plain gradient descent, and central differences of
that in double precision: no engine, no `functional_call`, no second derivative of autograd.
"""

from __future__ import annotations

import random
import warnings
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.models import slim_resnet18

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.errors import UsageError
from tests.adaptation.zoo.kinds import Kind

SUPPORT, QUERY = 5, 3
COLUMNS = ("native", "batched", "vmap", "loop", "higher", "auto")
INNER = {"inner_lr": 0.1, "inner_steps": 2, "batch_norm": "transductive"}


@contextmanager
def smooth():
    """Inside, softplus stands for ReLU and average for maximum: at kinks differences prove nothing."""

    def average(input, kernel_size, stride=None, padding=0, *args, **kwargs):
        return F.avg_pool2d(input, kernel_size, stride, padding)

    def softplus(x, inplace=False):
        return F.softplus(x)

    with ExitStack() as stack:
        for module, name, instead in [
            (F, "relu", softplus),
            (torch, "relu", softplus),
            (slim_resnet18, "relu", softplus),
            (F, "max_pool2d", average),
            (F, "adaptive_max_pool2d", lambda x, size, return_indices=False: F.adaptive_avg_pool2d(x, size)),
        ]:
            stack.enter_context(mock.patch.object(module, name, instead))
        yield


class Case:
    """A kind with data: what is right, and what an engine makes of it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.reasons: dict[str, str] = {}
        g = torch.Generator().manual_seed(1)

        def points(n):
            if kind.classes:
                return torch.randint(kind.classes, (kind.tasks, n, *kind.shape), generator=g)
            return torch.randn(kind.tasks, n, *kind.shape, generator=g, dtype=torch.float64)

        self.x, self.query = points(SUPPORT), points(QUERY)
        self.y = torch.randint(0, 2, (kind.tasks, SUPPORT), generator=g)

    def model(self):
        state = torch.get_rng_state()
        torch.manual_seed(0)
        try:
            return self.kind.build()._apply(
                lambda t: t.double() if t.is_floating_point() else t.to(torch.cdouble) if t.is_complex() else t
            )
        finally:
            torch.set_rng_state(state)

    def call(self, model, x):
        return model(x, torch.zeros(len(x), dtype=torch.long)) if self.kind.labels else model(x)

    def right(self):
        """Outputs, and how the sum of their products with a cotangent changes along a direction."""
        model = self.model()
        g = torch.Generator().manual_seed(2)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.direction = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in trained.items()}
        outputs = self.plain(0.0)
        self.cotangent = torch.randn(outputs.shape, generator=g, dtype=outputs.dtype)
        h = 2e-6
        small, large = ((self.loss(self.plain(k)) - self.loss(self.plain(-k))) / (2 * k) for k in (h, 2 * h))
        return outputs, float((4 * small - large) / 3)

    def loss(self, outputs):
        return inner(outputs.sin(), self.cotangent)

    def plain(self, length):
        outputs = []
        with seeded():
            for task in range(self.kind.tasks):
                model = self.model()
                parameters = dict(model.named_parameters())
                with torch.no_grad():
                    for n, d in self.direction.items():
                        parameters[n].add_(d, alpha=length)
                adapted = [parameters[n] for n in self.direction]
                for _ in range(INNER["inner_steps"]):
                    loss = self.kind.criterion(self.call(model, self.x[task].clone()), self.y[task])
                    found = torch.autograd.grad(loss, adapted, allow_unused=True)
                    with torch.no_grad():
                        for p, gradient in zip(adapted, found, strict=True):
                            if gradient is not None:
                                p.sub_(gradient, alpha=INNER["inner_lr"])
                outputs.append(self.call(model, self.query[task].clone()).detach())
        return torch.stack(outputs)

    def by(self, name):
        """Outputs, slope and name of an engine.

        :raises UsageError: if it takes no such model.
        """
        model = self.model()
        engine = make_engine(name, model, self.kind.criterion, **INNER)
        x, query = self.x.clone(), self.query.clone()
        if self.kind.labels:
            x, query = ((part, torch.zeros(part.shape[:2], dtype=torch.long)) for part in (x, query))
        parameters = dict(model.named_parameters())
        with seeded():
            outputs = engine.predict(parameters, (x, self.y), query)
        trained = [p for p in parameters.values() if p.requires_grad]
        self.right()
        found = torch.autograd.grad(self.loss(outputs), trained, allow_unused=True)
        pairs = zip(found, self.direction.values(), strict=True)
        return outputs.detach(), sum(float(inner(g, d)) for g, d in pairs if g is not None), engine.chosen["engine"]

    def word(self, name):
        """What an engine makes of it: "exact", the name of the one that takes it instead, "refused"; else a fault."""
        try:
            outputs, slope, taken = self.by(name)
        except UsageError as error:
            self.reasons[name] = str(error)
            return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
        right, right_slope = self.right()
        off = float((outputs - right).abs().norm() / right.abs().norm())
        if off > 1e-9 or abs(slope - right_slope) > 1e-6 * max(abs(right_slope), 1e-2):
            return f"wrong: outputs off by {off:.1e}, slope {slope}, right is {right_slope}"
        return "exact" if taken == name else taken

    def words(self):
        """The words of all engines, by name; what another engine takes is not refused by all."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for what models make themselves
        try:
            with smooth(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = {name: self.word(name) for name in (*ENGINES, "auto")}
        finally:
            torch.set_default_dtype(default)
        other = found["auto"] != "refused"
        return {name: "other" if word == "refused" and other else word for name, word in found.items()}


def inner(a, b):
    """The sum of products, of real and imaginary parts."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum() if a.is_complex() else (a * b).sum()


@contextmanager
def seeded():
    """Inside, layers draw from the same states."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def line(name, words):
    """A line of the table."""
    return "| " + " | ".join([name, *(words[engine] for engine in COLUMNS)]) + " |"
