"""Whether an engine computes what plain copies of the model compute, found out on a small part of a meta-batch.

The reference is the definition: a deep copy of the model for each task, at *other* weights than the model's own, plain
gradient steps on its support set, then the query; and for the derivative, finite differences of that. Neither
`functional_call` nor a second derivative of autograd is in it. In double precision, on a few points of a few tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.agreement import distances, resolved
from ftml_bench.adaptation.dependences import (
    dependences,
    refuse_changing,
    refuse_what_reads_the_last_call,
    sees_weights,
)
from ftml_bench.adaptation.differences import LENGTHS, LENGTHS_OF_SINGLE, Differences, are_settled
from ftml_bench.adaptation.double import SingleMeansDouble
from ftml_bench.adaptation.inner_loop import Criterion, InnerLoop, Input, Parameters, UntreatableError
from ftml_bench.adaptation.last_layer import order_of_calls, see_that_it_is_the_last, see_that_nothing_follows
from ftml_bench.adaptation.refusals import holds_tensors_of_vmap, is_pytorchs
from ftml_bench.adaptation.small_batch import (
    Weights,
    affordable,
    copied,
    elsewhere,
    few,
    inner,
    leave_out_padding,
    random_like,
    rows_of,
)
from ftml_bench.adaptation.weights import put, see_that_it_follows
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.layer_state import kept, parts_of
from ftml_bench.models.norm import batch_statistics
from ftml_bench.random_state import own_generator, own_generators_kept, random_state, replayed

MOST_STEPS = 2
STEP = 0.05  # of the weights, by which the trial's inner steps move them: curved enough to show, and no chaos
DIRECTIONS = 3
HIDDEN = {True: 1e-3, False: 3e-2}  # of a slope, in double precision and in single: more rounding decides nothing


class Trial:
    """A small meta-batch at other weights than the model's own, and what plain copies of the model make of it.

    :param settings: those of `InnerLoop`, without memory.
    :param agreeing: see `few`.
    :raises UsageError: for a model that no engine can treat: it cannot be copied or called, or changes its parameters
        or buffers when it is called.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        settings: dict[str, Any],
        agreeing: bool = False,
    ) -> None:
        self._kind = type(model).__name__
        self._settings = {**settings, "inner_steps": min(settings["inner_steps"], MOST_STEPS)}
        self.note = ""  # what the trial could not find out
        self.decides = True  # whether anything could be compared
        self._device, self._default = support[1].device, torch.get_default_dtype()
        generator = torch.Generator().manual_seed(0)
        weights = {n: elsewhere(p.detach(), generator) for n, p in parameters.items()}
        self._dtype: torch.dtype | None
        for self._dtype, rows in ((torch.float64, affordable(support[0])), (torch.float64, None), (None, None)):
            try:
                self._take(model, criterion, weights, *few(*support, query_x, rows=rows, agreeing=agreeing))
            except UsageError:
                raise
            except Exception as error:  # written for another precision or for another number of points, maybe
                reason = error
                continue
            if self._has_gradient or rows is None:  # otherwise the criterion may pass over the first points
                break
        else:
            raise UsageError(f"no engine can treat {self._kind}: plainly called it raises {said(reason)}") from reason
        if self._dtype is None:
            self.note = "tried in single precision only"

    def _take(
        self, model: nn.Module, criterion: Criterion, weights: Weights, x: Input, y: Tensor, query_x: Input
    ) -> None:
        """Note a problem of this precision, and what plain copies make of it."""
        self._asks_for_single = False
        with self._conditions():
            copy = copy_of(model)
            _refuse_shared(copy, model)
            self._model, self._criterion = self._cast(copy), self._cast_criterion(criterion, model)
            self._weights = {n: self._cast(w) for n, w in weights.items()}
            self._data = self._cast(x), self._cast(y), self._cast(query_x)
            self._reference = InnerLoop(self._copy(), self._criterion, **self._settings)
            with SingleMeansDouble() if self._dtype is not None else nullcontext() as double:
                self._find_out_what_a_call_does()
            self._asks_for_single = double is not None and double.was_needed
            parts = [*parts_of(model), *parts_of(criterion)]
            with _default_dtype(self._default), own_generators_kept(parts), kept(parts):
                self._compare_copy_and_model(model, criterion, weights, x, y)
            if self.draws:  # in another order for several tasks
                self._data = tuple(rows_of(part, slice(1)) for part in self._data)
        with self._conditions():
            self._state = random_state(self._device)
            self._expected = self._plain()
            generator = torch.Generator().manual_seed(1)
            trained = [n for n, p in self._model.named_parameters() if p.requires_grad]
            scales = {n: float(self._weights[n].abs().square().mean()) ** 0.5 or 0.1 for n in trained}
            self._directions = [
                {n: scales[n] * random_like(self._weights[n], generator) for n in trained} for _ in range(DIRECTIONS)
            ]
            for direction in self._directions:
                leave_out_padding(direction, self._model)
            self._lengths = LENGTHS if self._dtype is not None else LENGTHS_OF_SINGLE
            self._moved: dict[tuple[int, float], Tensor] = {}
            moves = distances(self._moved_by(0, self._lengths[0]), self._expected) / self._lengths[0]
            self._resolved = resolved(self._expected, moves)
            self._cotangent = random_like(self._expected, generator)
            some = self._resolved & (moves > 0) & moves.isfinite()
            self._large = float(self._expected[some].abs().norm())
            self._size = min(self._large, float(moves[some].norm()))

    def _compare_copy_and_model(
        self, model: nn.Module, criterion: Criterion, weights: Weights, x: Input, y: Tensor
    ) -> None:
        """Find out what copies cannot tell, since something in them holds the model itself; in its own precision.

        :raises UsageError: if a copy does not compute with its own weights, or calls change the criterion.
        """
        own, inputs = copy_of(model), tuple(rows_of(part, 0) for part in (x if isinstance(x, tuple) else (x,)))
        put(weights, own, model)
        with batch_statistics():
            see_that_it_follows(own, model, *inputs)
        if not is_pytorchs(criterion):
            refuse_changing(criterion, model, inputs, y[0])
            refuse_what_reads_the_last_call(criterion, model, inputs, y[0])
        self.criterion_sees_weights = sees_weights(criterion, model, weights, inputs, y[0])
        self.trains_others, self.unused = dependences(criterion, model, inputs, y[0])

    def check(self, engine_class: type[InnerLoop], memory: Any) -> None:
        """Compare an engine's outputs and a directional derivative with those of plain copies.

        :raises UntreatableError: if they differ, or the engine raises an error.
        """
        with self._conditions():
            try:
                engine = engine_class(self._copy(), self._criterion, **self._settings, memory=memory)
                engine.changes_inputs = self.changes_inputs
                outputs, gradients = self._by(engine)
            except UntreatableError:
                raise
            except Exception as error:  # whatever a model's own code runs into
                raise UntreatableError(engine_class.name, f"cannot treat this model ({said(error)})") from error
            self._compare(engine_class.name, outputs, gradients)
            if self.draws_on_host and engine_class.name in ("vmap", "batched"):
                raise UntreatableError(engine_class.name, "would draw from random or NumPy once for all tasks")
            if holds_tensors_of_vmap(engine.model):
                raise UntreatableError(engine_class.name, "would leave tensors of vmap in attributes of the model")

    def _by(self, engine: InnerLoop) -> tuple[Tensor, Weights]:
        leaves = {n: w.clone().requires_grad_(n in self._directions[0]) for n, w in self._weights.items()}
        x, y, query_x = copied(self._data)
        with replayed(self._state, self._device), engine.graphs.off():
            outputs = engine.predict(leaves, (x, y), query_x)
            names = list(self._directions[0])
            loss = self._weighed(outputs)
            found = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
        return outputs.detach(), {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def _compare(self, name: str, outputs: Tensor, gradients: Weights) -> None:
        double = self._dtype is not None
        if not self._resolved.any():
            self.note, self.decides = "outputs of plain copies are not finite: nothing compared", False
            return
        off = float(distances(outputs, self._expected).norm()) / max(self._size, 1e-30)
        if not off <= (1e-8 if double else 1e-3):
            raise UntreatableError(name, f"computes other outputs than plain copies of this model (off by {off:.1e})")
        slopes = [sum(float(inner(g, d[n])) for n, g in gradients.items()) for d in self._directions]
        products = [(g * d[n]).abs() for d in self._directions[:1] for n, g in gradients.items()]
        steepness = sum(float(product.square().sum()) for product in products) ** 0.5
        found_wrong = []
        for number, slope in enumerate(slopes):
            tried: list[Differences] = []
            for length in self._lengths:
                before, behind = self._slope(number, length)
                rounding = (1e-14 if double else 1e-6) * self._large / length
                tried.append(Differences(slope, before, behind, rounding))
                # a finer difference that agrees only because rounding allows more is no better than a coarser one
                is_better = all(tried[-1].error <= 0.1 * coarser.error for coarser in tried[:-1])
                is_exact = tried[-1].error <= (1e-6 if double else 3e-2) * steepness + rounding
                if is_better and is_exact and rounding <= HIDDEN[double] * steepness:
                    return
            if are_settled(tried):
                found_wrong.append(tried[-1].error / max(steepness, 1e-30))
            if len(found_wrong) == 2:
                raise UntreatableError(
                    name, f"has another derivative than finite differences show (off by {min(found_wrong):.1e})"
                )
        self.note = "finite differences cannot tell its derivative (kinks or rounding): outputs compared only"

    def _slope(self, number: int, length: float) -> tuple[float, float]:
        """The slopes of the plain copies' outputs before and behind the weights, along a direction."""
        # the difference of each output first: those that stay drop out, however large they are
        before, behind = (
            float(self._weighed(self._moved_by(number, h) - self._expected)) / h for h in (-length, length)
        )
        return before, behind

    def _weighed(self, outputs: Tensor) -> Tensor:
        """A random weighted sum of the outputs that differences resolve."""
        return inner(torch.where(self._resolved, outputs, 0), self._cotangent)

    def _moved_by(self, number: int, length: float) -> Tensor:
        """The outputs of plain copies at weights moved along a direction; computed once."""
        if (number, length) not in self._moved:
            self._moved[number, length] = self._plain(number, length)
        return self._moved[number, length]

    def _plain(self, number: int | None = None, length: float = 0.0) -> Tensor:
        """The outputs of plain copies, one a task, at weights moved along a direction."""
        direction = {} if number is None else self._directions[number]
        with replayed(self._state if number is not None else random_state(self._device), self._device):
            return torch.stack([self._task(task, direction, length) for task in range(len(self._data[1]))])

    def _task(self, task: int, direction: Weights, length: float) -> Tensor:
        loop = self._reference
        x, y, query_x = (rows_of(part, task) for part in copied(self._data))
        model = self._copy()
        held = dict(model.named_parameters())

        def move() -> None:
            with torch.no_grad():
                for name, d in direction.items():
                    held[name].add_(d, alpha=length)

        second_order = self._settings.get("second_order", True)
        if second_order:
            move()
        call = _of_task(model, x)
        inputs = x[0] if isinstance(x, tuple) else x
        adapted = [held[n] for n in loop.adapted]
        for _ in range(loop.inner_steps):
            with batch_statistics():  # also for what is computed once more on the way back
                loss = loop._support_loss(call, inputs.clone(), y)
                gradients = torch.autograd.grad(loss, adapted, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for p, g in zip(adapted, loop._clipped(gradients), strict=True):
                    p.sub_(g, alpha=loop.inner_lr)
        if not second_order:  # the steps are constants
            move()
        queries = query_x[0] if isinstance(query_x, tuple) else query_x
        return loop._query_outputs(call, inputs.clone(), queries.clone()).detach()

    def _copy(self) -> nn.Module:
        """A copy of the model at the trial's weights."""
        model = copy_of(self._model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in self._weights:
                    p.copy_(self._weights[name])
        return model

    def _find_out_what_a_call_does(self) -> None:
        """Whether a call draws or writes into its inputs.

        :raises UsageError: if it writes into the model's own parameters or buffers.
        """
        model = self._copy()
        x, y, _ = (rows_of(part, 0) for part in copied(self._data))
        inputs = x[0] if isinstance(x, tuple) else x
        before, version = random_state(self._device), inputs._version
        tensors: Weights = {f"parameter {n}": p for n, p in model.named_parameters()}
        tensors |= {f"buffer {n}": b for n, b in model.named_buffers()}
        versions = {name: (tensor._version, tensor.detach().clone()) for name, tensor in tensors.items()}
        call = _of_task(model, x)

        def checked(x: Tensor) -> Tensor:
            outputs: Any = call(x)
            if not isinstance(outputs, Tensor):
                kind = type(outputs).__name__
                raise UsageError(f"no engine can treat {self._kind}: it gives a {kind}: expected one tensor of outputs")
            return outputs

        called = order_of_calls(model)
        loss = self._reference._support_loss(checked, inputs, y)
        after = random_state(self._device)
        if self._settings.get("adapted") == "last_layer":
            see_that_it_is_the_last(model, self._reference.adapted, called)
            see_that_nothing_follows(another := self._copy(), self._reference.adapted, _of_task(another, x), inputs)
        self.draws_on_host = after[1] != before[1]
        self.draws = after != before or bool(own_generator(model))
        self.changes_inputs = inputs._version != version
        buffers = {f"buffer {n}": b for n, b in model.named_buffers()}
        for name, tensor in tensors.items():
            version, value = versions[name]
            is_same = torch.equal(tensor, value) or value.isnan().any()  # also where it was written by `.data`
            if tensor._version != version or buffers.get(name, tensor) is not tensor or not is_same:
                raise UsageError(
                    f"no engine can treat {self._kind}: its {name} changes when it is called, and would in every inner "
                    f"step"
                )
        adapted = [p for n, p in model.named_parameters() if n in self._reference.adapted]
        with batch_statistics():
            gradients = torch.autograd.grad(loss, adapted, allow_unused=True, materialize_grads=True)
        length, steepness = (sum(float(t.abs().square().sum()) for t in ts) ** 0.5 for ts in (adapted, gradients))
        self._has_gradient = 0 < length * steepness < float("inf")
        if self._has_gradient:
            self._settings["inner_lr"] = self._reference.inner_lr = STEP * length / steepness

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        """Inside, new tensors have the trial's precision; outside nothing is afterwards other than before."""
        with (
            torch.enable_grad(),
            torch.autocast(self._device.type, enabled=False),
            replayed(random_state(self._device), self._device),
            warnings.catch_warnings(),
            _default_dtype(self._dtype or self._default),
            SingleMeansDouble() if self._asks_for_single else nullcontext(),
        ):
            warnings.simplefilter("ignore")  # what they say is said in earnest soon
            yield

    def _cast(self, value: Any) -> Any:
        """A model, a tensor or a tuple of tensors in the trial's precision."""
        if isinstance(value, tuple):
            return tuple(map(self._cast, value))
        if isinstance(value, nn.Module):
            return value._apply(self._cast)
        if self._dtype is None or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.to(self._dtype.to_complex() if value.is_complex() else self._dtype)

    def _cast_criterion(self, criterion: Criterion, model: nn.Module) -> Criterion:
        if not isinstance(criterion, nn.Module):
            return criterion
        copy, of_model = copy_of(criterion), {id(p) for p in model.parameters()}
        for p, own in zip(copy.parameters(), criterion.parameters(), strict=True):
            p.requires_grad_(own.requires_grad and id(own) not in of_model)  # it may hold the model
        return self._cast(copy)


def _refuse_shared(copy: nn.Module, model: nn.Module) -> None:
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
        if id(tensor) in own:
            raise UsageError(f"a copy of {type(model).__name__} shares {name} with it (__deepcopy__): nothing is tried")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _of_task(model: nn.Module, x: Input) -> Callable[[Tensor], Tensor]:
    """The model on inputs of a task, with its label if it takes one."""
    if isinstance(x, Tensor):
        return model
    label = x[1][0]
    return lambda inputs: model(inputs, label.expand(len(inputs)))


def said(error: Exception) -> str:
    """An error's kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
