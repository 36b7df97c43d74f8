"""The current task metric and the long term metric, against evaluations of a learner that has kept everything."""

from statistics import fmean

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive

from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.metrics import term_metrics
from ftml_bench.models import RainbowNet
from ftml_bench.protocol import held_out, in_two_parts
from ftml_bench.strategies import FTML, MOGD

CTM, LTM = (f"{name}/eval_phase/test_stream" for name in ("Current_Task_Metric", "Long_Term_Metric"))


def built(cls, benchmark, recorder=None, **settings):
    torch.manual_seed(0)
    digits = isinstance(benchmark, RainbowDigits)
    model = RainbowNet(filters=4, layers=3, image_size=14) if digits else benchmark.model()
    metrics = term_metrics(benchmark=benchmark, metric="accuracy" if digits else "loss")
    evaluator = EvaluationPlugin(metrics, loggers=[recorder]) if recorder else EvaluationPlugin()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    given = {"model": model, "optimizer": optimizer, "criterion": benchmark.criterion, "eval_mb_size": 30}
    return cls(**given, evaluator=evaluator, **settings)


def meta(**changes):
    return {"steps": 2, "meta_batch_size": 2, "support_size": 3, "query_size": 3, "inner_steps": 1, **changes}


@pytest.mark.parametrize("batch_norm", ["support", "transductive"])
@pytest.mark.parametrize("stream", [RainbowDigits, Sinusoids])
def test_they_are_those_of_a_learner_that_has_kept_all_data(stream, batch_norm, recorder):
    """One that draws from the current round alone: FTML with all weight there keeps everything, MOGD nothing."""
    benchmark = stream(rounds=5, images_per_round=12, held_out_per_round=20)
    settings = meta(batch_norm=batch_norm)
    forgets = built(MOGD, benchmark, recorder, **settings)
    keeps = built(MOGD, benchmark, buffer=None, **settings)
    of_kept: list[list[float]] = []
    runs = (in_two_parts(strategy, benchmark, [5, 7]) for strategy in (forgets, keeps))
    for _, evaluation in zip(*runs, strict=True):
        if evaluation is not None and evaluation.datapoints == 12:
            of_kept.append([performance(keeps, benchmark, t) for t in range(evaluation.round + 1)])
    curves = recorder.curves()
    ends = [values[-1] for values in of_kept]
    assert curves[CTM] == [(t + 1, pytest.approx(fmean(ends[: t + 1]))) for t in range(5)]
    assert curves[LTM] == [(t + 1, pytest.approx(fmean(of_kept[t]))) for t in (0, 1, 3)]
    assert list(forgets.buffer.rounds) == [4]
    assert forgets.cost.gradient_evaluations == 10 * 2 * 2 * (3 + 2 * 3) + 5 * (5 + 12), (
        "of training and of evaluations"
    )
    for a, b in zip(forgets.model.parameters(), keeps.model.parameters(), strict=True):
        assert torch.equal(a, b)


def performance(strategy, benchmark, t):
    """On the held-out data of a round, after adaptation, without a metric."""
    experience = held_out(benchmark, t)
    strategy.model.eval()
    _, y = experience.stacked.take(torch.arange(len(experience.stacked)))
    outputs = []
    strategy._after_eval_forward = lambda **kwargs: outputs.append(strategy.mb_output.clone())
    strategy.eval([experience])
    (found,) = outputs
    return (
        float((found.argmax(1) == y).float().mean()) if y.dtype == torch.int64 else float(strategy._criterion(found, y))
    )


def test_of_a_strategy_of_avalanche(recorder):
    benchmark = Sinusoids(rounds=2, images_per_round=6, held_out_per_round=10)
    naive = built(Naive, benchmark, recorder, train_mb_size=3)
    losses = []
    for t, round in enumerate(benchmark.train_stream):
        naive.train(round, eval_streams=[])
        losses.append([performance(naive, benchmark, s) for s in range(t + 1)])
    assert recorder.curves()[LTM][-1] == (2, pytest.approx(fmean(losses[1])))


def test_a_learner_that_keeps_everything_is_left_as_it_was(recorder):
    benchmark = Sinusoids(rounds=2, images_per_round=6, held_out_per_round=10)
    ends = []
    for some in (recorder, None):
        strategy = built(FTML, benchmark, some, **meta())
        for t, round in enumerate(benchmark.train_stream):
            strategy.train(round, eval_streams=[])
            strategy.eval([held_out(benchmark, t)])
        ends.append((strategy.cost, list(strategy.buffer.rounds), strategy.rng.get_state().tolist()))
    assert ends[0] == ends[1]
