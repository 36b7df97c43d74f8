"""A network with a last layer of its own for every task."""

from __future__ import annotations

from collections import OrderedDict

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from ftml_bench.errors import UsageError
from ftml_bench.models.rainbow_net import RainbowNet


class MultiHeadNet(MultiTaskModule):
    """`RainbowNet` with one head a task, chosen by the task label (paper, section 6.2, for training on everything).

    An Avalanche multi-task module: its strategies, and ours that train jointly, tell it every point's task label. All
    heads exist from the start, so that the optimiser's parameters never change. A minibatch of several tasks goes
    through the common layers as one batch; Avalanche's own modules would normalise each task's share by itself.

    Input (N, channels, image_size, image_size) float in [0, 1] and task labels (N,) int64, or one int for all; output
    (N, classes). The other arguments are those of `RainbowNet`.

    :param heads: number of tasks; their labels are 0 to heads - 1.

    >>> net = MultiHeadNet(heads=3, layers=2, filters=4, image_size=14)
    >>> net(torch.rand(6, 3, 14, 14), torch.tensor([0, 0, 1, 1, 2, 2])).shape
    torch.Size([6, 5])
    """

    def __init__(
        self,
        *,
        heads: int = 96,
        layers: int = 5,
        filters: int = 32,
        image_size: int = 32,
        classes: int = 5,
        channels: int = 3,
    ) -> None:
        if heads < 1:
            raise UsageError(f"heads={heads}: expected a number of at least 1")
        super().__init__()
        net = RainbowNet(layers=layers, filters=filters, image_size=image_size, classes=classes, channels=channels)
        *body, (_, head) = net.named_children()
        assert isinstance(head, nn.Linear)
        self.body = nn.Sequential(OrderedDict(body))
        # One layer for all heads, with the initial values that as many single ones would have.
        self.heads = nn.Linear(head.in_features, heads * classes)
        self.classes = classes

    def forward(self, x: Tensor, task_labels: Tensor | int | None = None) -> Tensor | dict[int, Tensor]:
        """The outputs of each point's own head; without labels those of every task trained on so far, by its label.

        :raises UsageError: for a task label without a head.
        """
        outputs = self.heads(self.body(x)).unflatten(1, (-1, self.classes))  # (N, heads, classes)
        if task_labels is None:
            return {label: outputs[:, label] for label in sorted(self.known_train_tasks_labels)}
        labels = torch.as_tensor(task_labels, device=x.device).expand(len(x))
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
            raise UsageError(
                f"task labels {int(labels.min())} to {int(labels.max())} for a network with heads 0 to "
                f"{outputs.shape[1] - 1}: build it with heads={int(labels.max()) + 1}"
            )
        return outputs[torch.arange(len(x), device=x.device), labels]
