"""Learners that take their steps together, and alone."""

from __future__ import annotations

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.models import RainbowNet
from ftml_bench.protocol import in_two_parts
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.together import Together
from ftml_bench.strategies import FTML

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.1)


def learner(seed=0, plugins=None, evaluator=None, cls=FTML, optimizer=torch.optim.Adam, **settings):
    """One on what is taken for a GPU: it draws from tables, and every step is taken as it is."""
    torch.manual_seed(seed)
    model = RainbowNet(filters=4, layers=3, image_size=14)
    strategy = cls(
        model=model,
        optimizer=optimizer(model.parameters(), lr=1e-2),
        criterion=SMOOTHED,
        plugins=plugins,
        evaluator=evaluator or EvaluationPlugin(),
        seed=seed,
        **{"meta_batch_size": 3, "steps": 6, "eval_mb_size": 50, **settings},
    )
    strategy.execution.draws = DeviceDraws(strategy.buffer, seed)
    strategy.execution.recorded._record = lambda: False
    return strategy


def trained_together(learners, streams, sizes=20):
    """Their curves, how many learners took each pass of steps together, and the steps that were taken apart."""
    together, at_once, apart = Together(), [], []
    for strategy in learners:
        strategy.execution.together = together
        own = strategy.execution.take_alone
        strategy.execution.take_alone = lambda steps, own=own: (apart.append(steps), own(steps))
    build = together._recorded_of

    def meta_step_of(some):
        meta_step = build(some)
        meta_step._record = lambda: False
        at_once.append(len(some))
        return meta_step

    together._recorded_of = meta_step_of
    curves = [[] for _ in learners]
    running = {i: in_two_parts(*pair, sizes) for i, pair in enumerate(zip(learners, streams, strict=True))}
    while running:
        for i in list(running):
            part = next(running[i], "ended")
            if part not in (None, "ended"):
                curves[i].append(part)
                part = next(running[i], "ended")
            if part == "ended":
                del running[i]
        together.take_steps()
    return curves, at_once, apart, together


def tensors(strategy):
    state = [v for part in strategy.optimizer.state.values() for v in part.values() if isinstance(v, torch.Tensor)]
    return [*strategy.model.state_dict().values(), *state]


def numbers(strategy):
    return strategy.cost, {n: v for n, v in vars(strategy.clock).items() if isinstance(v, int)}
