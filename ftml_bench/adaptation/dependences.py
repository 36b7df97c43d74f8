"""What a loss depends on beside outputs and targets, and on which parameters outputs do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.graph_leaves import has_others, leaves_of
from ftml_bench.adaptation.inner_loop import Criterion
from ftml_bench.adaptation.small_batch import Weights, copied, elsewhere
from ftml_bench.adaptation.weights import while_holding
from ftml_bench.errors import UsageError
from ftml_bench.models.layer_state import kept, parts_of
from ftml_bench.models.norm import batch_statistics
from ftml_bench.random_state import own_generators_kept, preserved_random_state, random_state, replayed

NUMBERS_SEEN = 2**22  # of the inputs that a criterion is looked at with


def reads_the_last_call(criterion: Criterion, model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> bool:
    """Whether a criterion looks at what `model` keeps of its last call, as at a side output: of outputs that stay what
    they are, its loss is another one when the model has been called on other points (here one of them, repeated), and
    is what it was when it has been called on the same again."""
    state, parts = random_state(y.device), [*parts_of(model), *parts_of(criterion)]
    other = tuple(part[:1].expand(part.shape) for part in inputs)
    with torch.no_grad(), batch_statistics():
        losses = []
        for last in (inputs, other, inputs):
            with own_generators_kept(parts), kept(parts), replayed(state, y.device):
                outputs = model(*copied(inputs))
                if not isinstance(outputs, Tensor):
                    return False
                model(*copied(last))
                losses.append(criterion(outputs, y))
        first, of_others, again = losses
        return torch.equal(first, again) and not torch.equal(first, of_others)


def refuse_what_reads_the_last_call(
    criterion: Criterion, model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor
) -> None:
    """Refuse a criterion that looks at what a model keeps of its last call: copies and tasks are called in turn.

    :raises UsageError: if it does.
    """
    if reads_the_last_call(criterion, model, inputs, y):
        raise UsageError(
            f"the criterion reads what {type(model).__name__} keeps of its last call, which may be of another task or "
            f"copy: expected outputs that hold all that it reads"
        )


def sees_weights(
    criterion: Criterion, model: nn.Module, weights: Weights, inputs: tuple[Tensor, ...], y: Tensor
) -> bool:
    """Whether a criterion looks at the weights of `model`, as a penalty on them does: outputs being what they are."""
    state, parts = random_state(y.device), parts_of(criterion)
    with torch.no_grad(), batch_statistics():
        outputs = model(*copied(inputs))

        def loss() -> Tensor:
            with own_generators_kept(parts), kept(parts), replayed(state, y.device):
                return criterion(outputs.clone(), y)

        own, other = loss(), while_holding(model, weights, loss)
        return not (torch.equal(own, other) or (own.isnan().all() and other.isnan().all()))


def refuse_changing(criterion: Criterion, model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
    """Refuse a criterion that gives another loss when it is called again, as one with a running mean does.

    :raises UsageError: if it does.
    """
    state = random_state(y.device)
    with torch.no_grad(), batch_statistics():
        outputs = model(*copied(inputs))

        def loss() -> Tensor:
            with replayed(state, y.device), own_generators_kept(parts_of(criterion)):
                return criterion(outputs.clone(), y)

        if not torch.allclose(loss(), loss(), equal_nan=True):
            name = getattr(criterion, "__name__", type(criterion).__name__)
            raise UsageError(
                f"the criterion {name} gives another loss when it is called again, and would in every inner step: "
                f"expected one that calls do not change"
            )


def dependences(
    criterion: Criterion, model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor
) -> tuple[bool, frozenset[str]]:
    """Whether the loss is derived in tensors that are no parameters of `model` (a learned temperature, for one), and
    the names of those parameters in which the outputs are not."""
    state = random_state(y.device)
    with batch_statistics(), replayed(state, y.device):
        outputs = model(*(part.detach() for part in copied(inputs)))
        of_outputs = {id(leaf) for leaf in leaves_of(outputs)}
        loss = criterion(outputs, y.detach())
    own = dict(model.named_parameters())
    return has_others(loss, own.values()), frozenset(name for name, p in own.items() if id(p) not in of_outputs)


def looks(criterion: Criterion, model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> tuple[bool, bool]:
    """Whether a criterion looks at the model's weights, and whether the loss trains others than the model's, by these
    points; of large inputs not all are taken. Nothing is afterwards other than before.

    :raises UsageError: for a criterion that reads the last call.
    """
    every = -(-inputs[0].numel() // NUMBERS_SEEN)
    if every > 1:
        inputs, y = tuple(part[::every] for part in inputs), y[::every]
    parts, generator = [*parts_of(model), *parts_of(criterion)], torch.Generator().manual_seed(0)
    with (
        torch.enable_grad(),
        batch_statistics(),
        own_generators_kept(parts),
        kept(parts),
        preserved_random_state(y.device),
    ):
        if not isinstance(model(*copied(inputs)), Tensor):
            return False, False  # which a trial refuses
        weights = {name: elsewhere(p.detach(), generator) for name, p in model.named_parameters()}
        refuse_what_reads_the_last_call(criterion, model, inputs, y)
        others, _ = dependences(criterion, model, inputs, y)
        return sees_weights(criterion, model, weights, inputs, y), others
