"""The keywords that learners share, each written once: name, type, default and documentation.

A constructor takes them as `**learner: Unpack[LearnerKeywords]`: editors complete them, types are checked, and the
learner's signature, documentation and errors list what it takes beside its own.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_origin

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import nn
from typing_extensions import Required, TypedDict, Unpack, get_type_hints

from ftml_bench.buffer import Rule
from ftml_bench.errors import UsageError, unknown
from ftml_bench.strategies.avalanche.kinds import refuse_kinds


class AvalancheKeywords(TypedDict, total=False):
    """Those of Avalanche's `SupervisedTemplate`.

    :param model: the network; stock batch norms are converted in place, parameters stay the same objects.
    :param optimizer: of the model's parameters.
    :param criterion: the loss: (N, *output), (N, *target) -> the mean over the N points.
    :param train_mb_size: points of a minibatch, where minibatches of points are drawn; n points make
        ceil(n / train_mb_size) steps.
    :param train_epochs: how often the steps of an experience are taken.
    :param eval_mb_size: points of a minibatch in evaluation; None: `train_mb_size`.
    :param device: that everything runs on.
    :param plugins: Avalanche's, or others.
    :param evaluator: metrics and loggers.
    :param eval_every: evaluate every so many epochs or iterations in training; -1: never.
    :param peval_mode: whether `eval_every` counts "epoch" or "iteration".
    """

    model: Required[nn.Module]
    optimizer: Required[torch.optim.Optimizer]
    criterion: Annotated[nn.Module, nn.CrossEntropyLoss()]
    train_mb_size: Annotated[int, 1]
    train_epochs: Annotated[int, 1]
    eval_mb_size: Annotated[int | None, None]
    device: Annotated[str | torch.device, "cpu"]
    plugins: Annotated[Sequence[SupervisedPlugin] | None, None]
    evaluator: Annotated[EvaluationPlugin | Callable[[], EvaluationPlugin], default_evaluator]
    eval_every: Annotated[int, -1]
    peval_mode: Annotated[str, "epoch"]


class LearnerKeywords(AvalancheKeywords, total=False):
    """Those of every learner of the suite.

    :param steps: training steps an arrival (an epoch, on a stock stream); None: ceil(n / train_mb_size) for n points.
    :param update_size: at most so many points of D_t, where a copy is adapted to them or takes their statistics.
    :param seed: of everything that the learner draws.
    :param buffer: what is kept of earlier rounds: a rule of `ftml_bench.buffer`, such as `Reservoir(1000)`; None:
        everything.
    :param buffer_folder: keep the images of all rounds in a file there instead of in memory (streams of stacked
        tensors); the file is gone with the learner.
    """

    steps: Annotated[int | None, None]
    update_size: Annotated[int, 1000]
    seed: Annotated[int, 0]
    buffer: Annotated[Rule | None, None]
    buffer_folder: Annotated[str | os.PathLike[str] | None, None]


def with_defaults(kind: type, given: Any) -> dict[str, Any]:
    """The keywords `given`, and the defaults of `kind` (a `TypedDict` as above) for the others."""
    return {p.name: p.default for p in _parameters_of(kind) if p.default is not p.empty} | dict(given)


class WrittenKeywords:
    """A class whose constructor's keywords are all in its signature and its documentation; others are refused."""

    def __init_subclass__(cls, **kwargs) -> None:
        if "__init__" in vars(cls):  # Avalanche, next, looks there for the names of what is given by position
            cls.__init__.__signature__ = _whole_signature(cls)  # type: ignore[attr-defined]
        super().__init_subclass__(**kwargs)
        cls.__init__ = _constructor(cls)  # type: ignore[method-assign]
        cls.__doc__ = _documentation(cls)


class KeywordError(UsageError, TypeError):
    """A keyword that a learner does not take: Python's error for it, in our words."""


def _constructor(cls: Any) -> Callable[..., None]:
    """That of `cls` with its whole signature, which refuses keywords that it does not take, and values of other kinds.

    Avalanche, which takes positional arguments for keywords, lets go of those that are left. `train_passes`, as its
    `OnlineNaive` calls the epochs, is taken.
    """
    own: Callable[..., None] = cls.__init__
    signature = inspect.signature(own)
    names = [name for name in signature.parameters if name != "self"]

    @functools.wraps(own)
    def init(self, *args, **settings) -> None:
        if "train_passes" in settings and "train_passes" not in names:
            if "train_epochs" in settings:
                raise KeywordError(f"{cls.__name__}: train_epochs and train_passes are one setting: give one")
            settings["train_epochs"] = settings.pop("train_passes")
        for name in settings:
            if name not in names:
                raise KeywordError(str(unknown(f"setting of {cls.__name__}", name, names)))
        refuse_kinds(signature, settings)
        own(self, *args, **settings)

    return init


def _documentation(cls: type) -> str:
    """The docstring of a learner with those parameters that it takes and others document."""
    own = inspect.cleandoc(cls.__doc__ or "")
    documented = _documented(own)
    others = _inherited_documentation(cls)
    missing = [others[p] for p in inspect.signature(cls).parameters if p not in documented and p in others]
    return "\n".join([own, *([""] if missing and not documented else []), *missing])


def _whole_signature(cls: Any) -> inspect.Signature:
    """The constructor's, with its `**keywords` written out: those of `Unpack[...]`, else those of the base class."""
    own: Callable[..., None] = cls.__init__
    signature = inspect.signature(own)
    parameters = list(signature.parameters.values())
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return signature
    kind = _unpacked(own)
    base = inspect.signature(super(cls, cls).__init__).parameters.values()
    others_own = base if kind is None else _parameters_of(kind)
    shared = [p for p in others_own if p.name not in signature.parameters]
    first = [p for p in shared if p.name in AvalancheKeywords.__annotations__]  # as Avalanche takes them by position
    more = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
    others = [p for p in shared if p.name not in AvalancheKeywords.__annotations__]
    return signature.replace(parameters=sorted([parameters[0], *first, *more, *others], key=lambda p: p.kind))


def _unpacked(function: Callable[..., Any]) -> type | None:
    """The `TypedDict` of a function's `**keywords`; None if it has none."""
    own = inspect.unwrap(function)
    if not any("Unpack" in str(annotation) for annotation in own.__annotations__.values()):
        return None
    return next((get_args(hint)[0] for hint in get_type_hints(own).values() if get_origin(hint) is Unpack), None)


def _parameters_of(kind: type) -> list[inspect.Parameter]:
    """The keywords of a `TypedDict` as parameters; what `Annotated` adds to a type is the default."""
    parameters = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Required:
            (hint,) = get_args(hint)
        annotated = get_origin(hint) is Annotated
        hint, default = get_args(hint)[:2] if annotated else (hint, inspect.Parameter.empty)
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return parameters


def _inherited_documentation(cls: type) -> dict[str, str]:
    """The documentation of parameters by the base classes of `cls` and by the keywords that constructors unpack."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        kind = _unpacked(vars(base)["__init__"]) if inspect.isfunction(vars(base).get("__init__")) else None
        texts = [base.__doc__] + [k.__doc__ for k in ([] if kind is None else (kind, *_bases_of(kind)))]
        for text in texts:
            found = _documented(inspect.cleandoc(text or "")) | found
    return found


def _bases_of(kind: type) -> list[type]:
    """The TypedDicts that a TypedDict extends."""
    bases = [base for base in getattr(kind, "__orig_bases__", ()) if hasattr(base, "__total__")]
    return [b for base in bases for b in (base, *_bases_of(base))]


def _documented(text: str) -> dict[str, str]:
    """The `:param name:` of a docstring, each with the lines that belong to it."""
    found = re.findall(r"^(:param (\w+):.*(?:\n {4}.*)*)", text, re.MULTILINE)
    return {name: entry for entry, name in found}
