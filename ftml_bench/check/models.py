"""The contracts of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from ftml_bench.adaptation import make_engine
from ftml_bench.check.contract import (
    BrokenError,
    NotTestedError,
    batch,
    disturb,
    equal,
    keyword_only,
    misspelt_raises,
    small,
)
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import convert_batch_norm, has_norm
from ftml_bench.runs import building
from ftml_bench.seeding import seed_globals

_ANY_ROW = {"strategy": "FTML"}  # a definition has rows


class ModelSubject:
    """A model, and a few datapoints of a benchmark to feed it."""

    def __init__(self, cls: type, settings: dict[str, Any], benchmark: str, benchmark_settings: dict[str, Any]) -> None:
        self.cls, self.settings = cls, settings
        made = building.build_benchmark(small(benchmark, benchmark_settings, _ANY_ROW), 0, None)
        self.criterion = made.criterion
        self.x, self.y = batch(made.train_stream[0].dataset, 12)
        self.construct()  # a setting that does not exist is the caller's to mend

    def construct(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return building.construct(self.cls, {**self.settings, **changes}, self.cls.__name__, hidden=set())

    def output(self, model: nn.Module, x: Tensor) -> Tensor:
        takes_labels = isinstance(model, MultiTaskModule)
        labels = (torch.zeros(len(x), dtype=torch.long, device=x.device),) if takes_labels else ()
        return model(x, *labels)


def _output_shape(subject: ModelSubject) -> None:
    output = subject.output(subject.construct(), subject.x)
    if not torch.isfinite(output).all():
        raise BrokenError("the output is not finite")
    shape, of_targets = tuple(output.shape), tuple(subject.y.shape)
    if subject.y.is_floating_point():
        if shape != of_targets:
            raise BrokenError(f"for targets of shape {of_targets} the output has shape {shape}")
        return
    highest = int(subject.y.max())
    if len(shape) != 2 or shape[0] != len(subject.x) or shape[1] <= highest:
        raise BrokenError(f"for {len(subject.x)} points of classes up to {highest} the output has shape {shape}")


def _same_seed_same_parameters(subject: ModelSubject) -> None:
    first = subject.construct()
    disturb()
    if not equal([*first.state_dict().values()], [*subject.construct().state_dict().values()]):
        raise BrokenError("torch.manual_seed does not decide its parameters")


def _one_by_one(subject: ModelSubject) -> None:
    model = subject.construct()
    with torch.no_grad():
        subject.output(model, subject.x)  # running statistics
        model.eval()
        together = subject.output(model, subject.x)
        alone = torch.cat([subject.output(model, x[None]) for x in subject.x])
    if not torch.allclose(together, alone, atol=1e-4):
        raise BrokenError("in evaluation mode a prediction depends on the other points of the batch")


def _norm_is_converted(subject: ModelSubject) -> None:
    model = subject.construct()
    if not has_norm(model):
        raise NotTestedError("it has no batch norm")
    converted = convert_batch_norm(copy_of(model))
    with torch.no_grad():
        for mode in (True, False):
            seed_globals(0)  # of layers that draw
            ours = subject.output(converted.train(mode), subject.x)
            seed_globals(0)
            theirs = subject.output(model.train(mode), subject.x)
            if not torch.allclose(ours, theirs, atol=1e-4):
                raise BrokenError(
                    f"converted, the model predicts otherwise ({'training' if mode else 'evaluation'} mode)"
                )


def _moves(subject: ModelSubject) -> None:
    """On a GPU; without one on PyTorch's "meta" device, whose tensors have shapes but no numbers."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    model = subject.construct().to(device)
    try:
        output = subject.output(model, subject.x.to(device))
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if device == "meta" and (isinstance(error, NotImplementedError) or "item()" in reason):
            raise NotTestedError("it asks for numbers on the way, and there is no GPU here") from error
        raise BrokenError(f"moved to another device it fails: {reason}") from error
    if output.device.type != device:
        raise BrokenError(f"moved to {device!r} it gives outputs on {output.device.type!r}")


def _engine_is_exact(subject: ModelSubject) -> None:
    """The engine that "auto" picks, by its own trial: plain copies of the model and finite differences."""
    model = subject.construct()
    support_x, support_y, query_x = (
        part.unflatten(0, (2, 3)) for part in (subject.x[:6], subject.y[:6], subject.x[6:12])
    )
    inputs: list[Any] = [support_x, query_x]
    if isinstance(model, MultiTaskModule):
        inputs = [(x, torch.zeros(x.shape[:2], dtype=torch.long)) for x in inputs]
    engine = make_engine("auto", model, subject.criterion, inner_lr=0.01, inner_steps=2, batch_norm="transductive")
    try:
        engine.predict(dict(model.named_parameters()), (inputs[0], support_y), inputs[1])
    except UsageError as error:
        raise BrokenError(str(error)) from error


MODEL_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": keyword_only,
    "a misspelt keyword raises": misspelt_raises,
    "output fits the benchmark's labels": _output_shape,
    "same seed, same parameters": _same_seed_same_parameters,
    "evaluation mode predicts point by point": _one_by_one,
    "batch norm can be converted": _norm_is_converted,
    "another device": _moves,
    "an engine treats it exactly": _engine_is_exact,
}
