"""Avalanche's own strategies, and any other plain `SupervisedTemplate`, on streams that arrive a few points at a time.

`on_arrivals(EWC)` is EWC with two more keywords, `steps` and `seed`. A round is its experience: at every arrival it
trains for `steps` steps on the round's data so far, and what Avalanche does at the end of an experience (importances,
memories, teachers, the count of experiences) happens at the end of the round. Left to itself, a plugin takes every
arrival for an experience: EWC keeps one copy of the parameters an arrival, a memory is split among arrivals.

What has to be worked round in Avalanche 0.6.0 for that, and what is refused, is in `stock_repairs`.
"""

from __future__ import annotations

import functools
import inspect
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook

from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.random_state import preserved_random_state
from ftml_bench.seeding import derive
from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.described import described
from ftml_bench.strategies.avalanche.stock_repairs import MENDED_PLUGINS, MENDED_STRATEGIES, REFUSED


@functools.cache
def on_arrivals(strategy_class: type[BaseSGDTemplate]) -> type[BaseSGDTemplate]:
    """A strategy class that is `strategy_class` with rounds for experiences and `steps` training steps an arrival.

    Its constructor takes that class's keywords, those of its base classes, `steps` and `seed`, but not `train_epochs`:
    epochs are repeated until the steps are spent. Further attributes: `cost`, a `Cost`.

    :raises UsageError: for anything but a supervised strategy of Avalanche, and for those that cannot run (`REFUSED`).
    """
    strategy_class = inspect.unwrap(strategy_class)  # Avalanche's OnlineNaive is a function round the class
    if not (inspect.isclass(strategy_class) and issubclass(strategy_class, BaseSGDTemplate)):
        raise UsageError("it is no strategy of Avalanche's kind (SupervisedTemplate)")
    bases = _names_in_avalanche(strategy_class)
    for name in bases & set(REFUSED):
        raise UsageError(f"{name} cannot be run here: {REFUSED[name]}")
    mended = [mixin for name, mixin in MENDED_STRATEGIES.items() if name in bases]
    return type(
        strategy_class.__name__,
        (*mended, _OnArrivals, strategy_class),
        {
            "__doc__": strategy_class.__doc__,
            "__module__": strategy_class.__module__,
            "__signature__": _signature(strategy_class),
        },
    )


def _names_in_avalanche(strategy_class: type) -> set[str]:
    """The names of those of a class's bases, itself included, that are Avalanche's; LaMAML's with its module's, since
    there are two."""
    bases = [base for base in strategy_class.__mro__ if base.__module__.startswith("avalanche.")]
    modules = {base: base.__module__.rpartition(".")[2] for base in bases}
    return {f"{modules[b]}.{b.__name__}" if b.__name__ == "LaMAML" else b.__name__ for b in bases}


def _signature(strategy_class: type) -> inspect.Signature:
    """The keywords of a class and, where it passes others on, of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in strategy_class.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        for parameter in named:
            found.setdefault(parameter.name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    for name in ("train_epochs", "train_passes"):
        found.pop(name, None)
    for name, default in (("steps", inspect.Parameter.empty), ("seed", 0)):
        found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
    return inspect.Signature(list(found.values()))


def _refuse_norms_without_statistics(model: nn.Module | None) -> None:
    """What they say of a point depends on which others are evaluated with it, thus on `eval_mb_size`."""
    for name, module in model.named_modules() if model is not None else ():
        if isinstance(module, _BatchNorm) and not module.track_running_stats:
            raise UsageError(
                f"{name or 'the model'}: a {type(module).__name__} that keeps no running statistics normalises "
                f"every minibatch of an evaluation by itself: expected track_running_stats=True"
            )


# Not a subclass: Avalanche would check all keywords by what this class and its own bases take.
class _OnArrivals(BaseSGDTemplate if TYPE_CHECKING else object):  # type: ignore[misc]
    """Goes before a strategy class in the order of bases; see `on_arrivals`."""

    batch_norm = "running"
    model: nn.Module
    experience: Any
    mbatch: Any
    mb_output: Any
    loss: Any

    def __init__(self, *, steps: int, seed: int = 0, **settings: Any) -> None:
        if steps < 1:
            raise UsageError(f"steps={steps}: expected a number of at least 1")
        _refuse_norms_without_statistics(settings.get("model"))
        # Every epoch takes a step or more, so that these are enough. OnlineNaive has a name of its own for them.
        passes = "train_passes" in inspect.signature(super().__init__).parameters
        super().__init__(**settings, **{"train_passes" if passes else "train_epochs": steps})
        self.steps = steps
        self.cost = Cost()
        self._seen: Any = None  # of the round
        self._random = _seeded(derive(seed, "stock"))
        self._in_step = False
        for plugin in self.plugins:
            mended = MENDED_PLUGINS.get(type(plugin))
            if mended is not None:
                plugin.__class__ = mended

    def __repr__(self) -> str:
        return f"<{described(self)}>"

    # -- training

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """As Avalanche's; what is drawn at random depends on `seed` and on earlier training alone."""
        counter = register_module_forward_hook(self._count)
        try:
            with preserved_random_state(self.device), _without_deprecations():
                _set_random(self._random)
                metrics = super().train(experiences, eval_streams, **kwargs)
                self._random = _get_random()
        finally:
            counter.remove()
        return metrics

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Called after every module's forward pass: what goes through the model has been drawn; with gradients, it
        is a gradient evaluation."""
        if module is not self.model:
            return
        if self._in_step:
            self.cost.images += len(inputs[0])
        if torch.is_grad_enabled():
            self.cost.gradient_evaluations += len(inputs[0])

    def _before_training_exp(self, **kwargs: Any) -> None:
        self.arrival = self.experience
        if needs_classes(type(self)) and not hasattr(self.arrival.dataset, "targets"):
            raise UsageError(f"{type(self).__name__} needs classes: it cannot be run on a regression stream")
        first = getattr(self.arrival, "is_first_subexp", True)
        self._seen = self.arrival.dataset if first else self._seen.concat(self.arrival.dataset)
        self.experience = copy(self.arrival)
        self.experience._dataset = self._seen  # Avalanche gives it no setter
        self._stop_training = False  # where the steps ended with an epoch, it still stands
        self._note_memory()
        super()._before_training_exp(**kwargs)

    def _note_memory(self) -> None:
        """The round at hand and the memory, where it is one of Avalanche's storage policies."""
        parts = (self, getattr(self, "buffer", None), *self.plugins)
        policies = [part.storage_policy for part in parts if hasattr(part, "storage_policy")]
        if policies:
            at_hand = len(self._seen) + sum(len(policy.buffer) for policy in policies)
            self.cost.points_kept = max(self.cost.points_kept or 0, at_hand)

    def make_train_dataloader(self, drop_last: bool = False, **kwargs: Any) -> None:
        """As Avalanche's, but no data are dropped: a small arrival may be less than a minibatch."""
        super().make_train_dataloader(drop_last=False, **kwargs)

    def _before_training_iteration(self, **kwargs: Any) -> None:
        self._in_step = True
        super()._before_training_iteration(**kwargs)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        self._in_step = False
        self.cost.steps += 1
        if self.clock.train_exp_iterations >= self.steps:
            self.stop_training()

    def _after_training_exp(self, **kwargs: Any) -> None:
        taken = self.clock.train_exp_iterations
        if taken != self.steps:
            raise UsageError(f"{type(self).__name__} took {taken} steps instead of {self.steps}")
        if getattr(self.arrival, "is_last_subexp", True):
            super()._after_training_exp(**kwargs)
        else:
            self.evaluator.after_training_exp(self, **kwargs)

    # -- evaluation

    @torch.no_grad()
    def eval(self, exp_list: Any, **kwargs: Any) -> Any:
        """As Avalanche's, on a copy of the model; nothing is afterwards other than before."""
        model, state = self.model, self._save_train_state()
        iteration = self.mbatch, self.mb_output, self.loss
        try:
            self.model = copy_of(model)
            # a copy made in inference mode would be of another kind than the model
            with torch.inference_mode(False), torch.no_grad(), preserved_random_state(self.device):
                return super().eval(exp_list, **kwargs)
        finally:
            self.model = model
            self._load_train_state(state)
            self.mbatch, self.mb_output, self.loss = iteration


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Avalanche warns at every call of functions of its own that it has deprecated, whatever the filters are."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:  # what was warned of before an error may say why
        for warning in caught:
            if not issubclass(warning.category, DeprecationWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


RandomState = tuple[Any, Any, torch.Tensor]


def _seeded(seed: int) -> RandomState:
    """States of Python's, NumPy's and PyTorch's generators as if each had been seeded."""
    return (
        random.Random(seed).getstate(),
        np.random.RandomState(seed % 2**32).get_state(),
        torch.Generator().manual_seed(seed).get_state(),
    )


def _get_random() -> RandomState:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random(state: RandomState) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


_NEED_CLASSES = {"AGEM", "DER", "ER_ACE", "GDumb", "LwF", "MER", "MIR", "Replay", "lamaml_v2.LaMAML"}


def needs_classes(strategy_class: type) -> bool:
    """Whether a strategy of Avalanche's stores or distils classes, so that it cannot be run on a regression stream."""
    return not _names_in_avalanche(strategy_class).isdisjoint(_NEED_CLASSES)
