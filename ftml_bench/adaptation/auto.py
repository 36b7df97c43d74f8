"""The first of several engines that is exact for a model, found out by a trial, with the reasons against the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ftml_bench.adaptation.composition import Composition, composition, modules_of, pieces
from ftml_bench.adaptation.dependences import looks
from ftml_bench.adaptation.inner_loop import Criterion, InnerLoop, Input, Parameters, UntreatableError, names_in
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.small_batch import rows_seen, views
from ftml_bench.adaptation.trial import Trial, said
from ftml_bench.errors import UsageError, above_zero
from ftml_bench.random_state import random_state, restore

Result = TypeVar("Result")
OTHERS = "what the loss trains beside the model's parameters (of the criterion, or tensors that no module holds)"
SETTINGS = {name for name, p in inspect.signature(InnerLoop).parameters.items() if p.kind is p.KEYWORD_ONLY}


class TriedEngine:
    """Engines of which the first is used that passes the trial (see `trial`) at the first meta-batch.

    Whatever is replaced, frozen, hooked or set in the model afterwards, and another criterion, is noticed at the next
    call: then the engines are built and tried anew.

    :param candidates: engine classes, the preferred first.
    :param settings: those of `InnerLoop`.
    :raises UsageError: at once or at the first `predict`, if no candidate treats the model exactly.
    """

    def __init__(
        self, candidates: list[type[InnerLoop]], model: nn.Module, criterion: Criterion, settings: dict[str, Any]
    ) -> None:
        if "adapted" in settings and not isinstance(settings["adapted"], str):
            settings = {**settings, "adapted": names_in(settings["adapted"])}
        self._candidates = candidates
        self._settings = dict(settings)
        self._criterion = criterion
        self._built = 0
        self._ever_changing: set[tuple[Any, ...]] = set()  # parts of the composition that calls change
        self._trains_others = self._sees_weights = False  # what `see_criterion` has found
        self._composition: Composition
        self._build(model)

    def __repr__(self) -> str:
        return repr(self._engine)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_engine" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings of the inner loop may be set at any time."""
        if name not in SETTINGS:
            super().__setattr__(name, value)
            return
        if name == "inner_lr":
            above_zero(inner_lr=value)
        self._settings[name] = value
        if name in ("inner_lr", "memory_budget"):  # which no trial depends on
            setattr(self._engine, name, value)
        else:
            self._build(self._model)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        return dict(self._settings)

    @property
    def criterion(self) -> Criterion:
        """The loss of both loops; it may be exchanged."""
        return self._criterion

    @criterion.setter
    def criterion(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._trains_others = self._sees_weights = False
        self._build(self._model)

    def see_criterion(self, x: Input, y: Tensor) -> None:
        """Find out on some points whether a criterion of somebody's own looks at more than a trial on others has seen:
        a term that only some classes have, or one that has been switched on.

        :param x: (N, *input), y: (N, *target); x with its task labels, (N,), if the model takes them.
        """
        sees, others = looks(self._criterion, self._engine.model, usable(x if isinstance(x, tuple) else (x,)), y)
        if (sees and not self._sees_weights) or (others and not self._trains_others):
            self._sees_weights |= sees
            self._trains_others |= others
            self._build(self._model)

    @property
    def built(self) -> int:
        """See `Engine.built`."""
        self._notice_changes()
        return self._built

    @property
    def chosen(self) -> dict[str, str]:
        """See `Engine.chosen`."""
        chosen = self._engine.chosen
        notes = dict.fromkeys([*self._notes, *filter(None, [chosen.get("engine_note")])])
        return {**chosen, **({"engine_note": "; ".join(notes)} if notes else {})}

    @property
    def found_out(self) -> dict[str, Any]:
        """The engine that trials have led to and what spoke against those before it: what `go_on_with` takes."""
        return {"engine": self._engine.name, "notes": list(self._notes)}

    def go_on_with(self, engine: str, notes: list[str]) -> None:
        """Build the engine of that name without trying those before it again.

        A saved run goes on with what it had found out: tried anew, a model that has changed in training may pass with
        an engine that is as exact and rounds otherwise.
        """
        names = [kind.name for kind in self._candidates]
        if engine in names:
            self._build(self._model, names.index(engine), notes)

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """See `Engine.predict`.

        :raises UsageError: also for parameters that are not all there, or for sets that do not fit each other.
        """
        x, y, query_x = usable((*support, query_x))
        self._check(parameters, x, y, query_x)
        if every_step and not self._engine.inner_steps:
            raise UsageError("every_step: there are outputs after each inner step, and inner_steps=0")
        with outside_inference_mode():
            return self._by_the_first(
                lambda engine: engine.predict(parameters, (x, y), query_x, rule=rule, every_step=every_step),
                parameters,
                (x, y),
                query_x,
                plain=rule.is_plain and not every_step,
            )

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """See `Engine.predict_each`."""
        if not self._engine.takes_each:
            return self._engine.predict_each(parameters, support, query_x, memory)
        first = {name: p[0] for name, p in parameters.items()}
        return self._by_the_first(
            lambda engine: engine.predict_each(parameters, support, query_x, memory), first, support, query_x
        )

    def outputs(self, parameters: Parameters, x: Tensor) -> Tensor:
        """See `NativeEngine.outputs`."""
        x = usable(x)
        points = x.new_zeros(x.shape[:2])
        return self._by_the_first(lambda engine: engine.outputs(parameters, x), parameters, (x, points), x)

    def adapt(
        self, parameters: Parameters, x: Input, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> dict[str, Tensor]:
        """See `Engine.adapt`."""
        self._notice_changes()
        x, y = usable((x, y))
        with outside_inference_mode():
            if not self._engine.adapts_by_itself:
                return self._engine.adapt(parameters, x, y, steps, rule=rule)
            return self._by_the_first(
                lambda engine: engine.adapt(parameters, x, y, steps, rule=rule), parameters, *_as_one_task(x, y)
            )

    def adapt_each(
        self, parameters: Parameters, x: Tensor, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> list[dict[str, Tensor]]:
        """See `Engine.adapt_each`."""
        self._notice_changes()
        x, y = usable((x, y))
        with outside_inference_mode():
            try:
                return self._engine.adapt_each(parameters, x, y, steps, rule=rule)
            except UntreatableError:  # such as shapes that it has no form for
                return [self.adapt(parameters, *task, steps, rule=rule) for task in zip(x, y, strict=True)]
            except (UsageError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception:  # which a plain copy of the model may raise, too: then that is said
                Trial(self._engine.model, self._criterion, parameters, (x, y), x, self._settings_of_steps())
                raise

    def _check(self, parameters: Parameters, x: Input, y: Tensor, query_x: Input) -> None:
        missing = [name for name, _ in self._engine.model.named_parameters() if name not in parameters]
        if missing:
            raise UsageError(f"parameter {missing[0]} of {type(self._model).__name__} is not among those given")
        inputs, queries = (part[0] if isinstance(part, tuple) else part for part in (x, query_x))
        if inputs.dim() < 2 or inputs.shape[:2] != y.shape[:2] or len(queries) != len(inputs):
            raise UsageError(
                f"support x {tuple(inputs.shape)}, y {tuple(y.shape)} and query x {tuple(queries.shape)}: expected "
                f"(tasks, points, ...) with as many tasks each, and as many points in x and y"
            )

    def _by_the_first(
        self,
        call: Callable[[InnerLoop], Result],
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        plain: bool = True,
    ) -> Result:
        """`call(engine)` by the first engine that passes the trial, and this call if it is the first of its kind.

        :param plain: of gradient steps by one rate, which some engines take alone.
        """
        self._notice_changes()
        if (*_kind_of(self._engine, *support, query_x), plain) in self._passed:
            return call(self._engine)
        data = (parameters, support, query_x, self._settings_of_steps())
        trials = [Trial(self._engine.model, self._criterion, *data, view) for view in views(support[0], query_x)]
        state = random_state(support[1].device)
        while True:
            try:
                for trial in trials:
                    self._try(trial)
                outputs = call(self._engine)
                break
            except UntreatableError as reason:
                self._take_next(reason)
            except (UsageError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # in the whole what was right in the small
                self._take_next(UntreatableError(self._engine.name, f"cannot treat this model ({said(error)})"), error)
            restore(state, support[1].device)
        if all(trial.decides for trial in trials):  # of NaN no trial tells anything: it is made again
            self._passed.add((*_kind_of(self._engine, *support, query_x), plain))  # of the engine that was found
        self._notes += {trial.note: None for trial in trials if trial.note}
        before = self._composition
        self._note_composition()
        self._ever_changing |= _differences(before, self._composition)
        return outputs

    def _try(self, trial: Trial) -> None:
        """Try the present engine; where it may choose how to spare memory, in both ways."""
        engine = self._engine
        trains_others = trial.trains_others or self._trains_others
        sees = trial.criterion_sees_weights or self._sees_weights
        engine.changes_inputs, engine.trains_others = trial.changes_inputs, trains_others
        engine.unused, engine.criterion_sees_weights = trial.unused, sees
        if trains_others and not engine.by_autograd:
            raise UntreatableError(engine.name, f"takes no derivative in {OTHERS}")
        if sees and engine.name != "loop":
            raise UntreatableError(engine.name, "calls the criterion, which looks at the model's weights, with its own")
        ways = engine.memories if engine.memory == "auto" else (engine.memory,)
        if trains_others:
            ways = tuple(way for way in ways if way == "unroll")
            if not ways:
                raise UntreatableError(engine.name, f"with memory='adjoint' takes no derivative in {OTHERS}")
        failures: list[UntreatableError] = []
        for memory in ways:
            try:
                trial.check(type(engine), memory)
            except UntreatableError as reason:
                failures.append(reason)
                left = [way for way in ways if way != memory]
        if len(failures) == len(ways):
            raise failures[0]
        if failures:
            engine.memory = engine.chosen_memory = left[0]
            self._notes.append(failures[0].note)

    def _notice_changes(self) -> None:
        """Build anew if the model is not what it was when the engine was built.

        :raises UsageError: where parametrised weights are kept as they were, whatever they are computed from.
        """
        if getattr(parametrize, "_cache_enabled", 0):
            raise UsageError(
                "inside parametrize.cached(), weights would stay those of before the inner steps: expected a call "
                "outside, or cached() inside the model's forward"
            )
        now = pieces(self._modules)
        if len(now) == len(self._pieces) and all(map(is_, now, self._pieces)):
            return
        before = self._composition
        self._note_composition()
        if _differences(before, self._composition) - self._ever_changing:
            self._build(self._engine.model)

    def _note_composition(self) -> None:
        self._composition = composition(self._engine.model, self._criterion)
        self._modules = modules_of(self._engine.model, self._criterion)
        self._pieces = pieces(self._modules)

    def _build(self, model: nn.Module, first: int = 0, notes: Iterable[str] = ()) -> None:
        """:param first: of the candidates; `notes` are against those before it."""
        self._built += 1
        self._notes = list(notes)
        self._passed: set[tuple[Any, ...]] = set()
        self._left = self._candidates[first:]
        self._model = model
        self._take_next(None)
        self._note_composition()

    def _take_next(self, reason: UntreatableError | None, error: Exception | None = None) -> None:
        """Build the next candidate that can be built; `reason` (and the error behind it) is against the one before."""
        while True:
            if reason is not None:
                self._notes.append(reason.note)
                if not self._left:
                    raise self._none_is_left(reason) from (error or reason)
            kind = self._left.pop(0)
            try:
                self._engine = kind(self._model, self._criterion, **self._settings)
                return
            except UntreatableError as found:
                reason = found

    def _none_is_left(self, reason: UntreatableError) -> UsageError:
        if reason.args[0] != "loop":
            return reason
        advice = (
            "; second_order=False may do"
            if self._settings.get("second_order", True) and "derivative" in reason.note
            else ""
        )
        return UsageError(f"no engine can treat {type(self._model).__name__}: {reason.note}{advice}")

    def _settings_of_steps(self) -> dict[str, Any]:
        return {name: value for name, value in self._settings.items() if name not in ("memory", "memory_budget")}


def usable(value: Any) -> Any:
    """Tensors that gradients can be taken of: copies of those that were made in inference mode."""
    if isinstance(value, tuple):
        return tuple(map(usable, value))
    if not value.is_inference():
        return value
    with torch.inference_mode(False):
        return value.clone()


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Inside, gradients can be taken, which inference mode has none of."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _as_one_task(x: Input, y: Tensor) -> tuple[tuple[Input, Tensor], Input]:
    """Support and query of a meta-batch of one task."""
    inputs = (x[0][None], x[1][None]) if isinstance(x, tuple) else x[None]
    return (inputs, y[None]), inputs


def _kind_of(engine: InnerLoop, x: Input, y: Tensor, query_x: Input) -> tuple[Any, ...]:
    """What a trial may depend on beside the model's composition: modes, shapes of points, precision, device.

    Models and criteria may branch on the number of points; an engine that computes by itself calls neither.
    """
    modes = tuple(module.training for module in engine.model.modules())
    seen = () if engine.adapts_by_itself else (rows_seen(x, query_x), views(x, query_x))
    tensors = [part for data in (x, y, query_x) for part in (data if isinstance(data, tuple) else (data,))]
    return (modes, seen, *((t.shape[2:], t.dtype, t.device) for t in tensors), torch.is_autocast_enabled(y.device.type))


def _differences(before: Composition, now: Composition) -> set[tuple[Any, ...]]:
    """The parts of two compositions that differ."""
    return {part for part in {*before, *now} if before.get(part) != now.get(part)}
