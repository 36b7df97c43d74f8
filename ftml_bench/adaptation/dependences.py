"""What a loss depends on beside the outputs, and on which parameters outputs do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.graph_leaves import has_others, leaves_of
from ftml_bench.adaptation.inner_loop import Criterion
from ftml_bench.adaptation.small_batch import Weights, copied
from ftml_bench.adaptation.weights import while_holding
from ftml_bench.models.norm import batch_statistics
from ftml_bench.random_state import random_state, replayed


def sees_weights(
    criterion: Criterion, model: nn.Module, weights: Weights, inputs: tuple[Tensor, ...], y: Tensor
) -> bool:
    """Whether a criterion looks at the weights of `model`, as a penalty on them does: outputs being what they are."""
    state = random_state(y.device)
    with torch.no_grad(), batch_statistics():
        outputs = model(*copied(inputs))

        def loss() -> Tensor:
            with replayed(state, y.device):
                return criterion(outputs.clone(), y)

        own, other = loss(), while_holding(model, weights, loss)
        return not (torch.equal(own, other) or (own.isnan().all() and other.isnan().all()))


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
