"""A learning rate that changes once, after a number of training steps of the whole stream."""

from __future__ import annotations

from avalanche.core import SupervisedPlugin

from ftml_bench.errors import above_zero, at_least


class LearningRateAfter(SupervisedPlugin):
    """Sets the optimiser's learning rate to `lr` after `after_steps` training steps, counted over all rounds.

    As the paper trains on CIFAR-100 (appendix): SGD with 0.01 for the first 5,000 steps, then 0.001. Avalanche's
    `LRSchedulerPlugin` starts anew with every experience, which here is every arrival.

    :param after_steps: steps with the optimiser's own rate, at least 1.
    :param lr: the rate from then on, above 0.
    """

    def __init__(self, *, after_steps: int, lr: float) -> None:
        at_least(1, after_steps=after_steps)
        above_zero(lr=lr)
        super().__init__()
        # Avalanche takes any attribute named after_... for a callback.
        self.first_steps = after_steps
        self.lr = lr

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Set the rate when its time has come; the clock decides, so that a resumed run has it too."""
        if strategy.clock.train_iterations >= self.first_steps:
            for group in strategy.optimizer.param_groups:
                group["lr"] = self.lr
