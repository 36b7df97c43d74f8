"""FTML: what it draws, how it adapts, what acts on its meta-update."""

from copy import deepcopy

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.models import TaskBatchNorm
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import FTML
from tests.strategies.learners import build, parameters


def test_first_order_ftml_counts_the_inner_gradients_once(digits):
    strategy = build("FTML", second_order=False)
    strategy.train(digits.train_stream[0], eval_streams=[])
    assert strategy.cost.gradient_evaluations == 2 * 2 * (5 * 10 + 10)


def test_ftml_adapts_by_the_update_procedure_before_it_predicts(digits):
    strategy = build("FTML")
    strategy.train(digits.train_stream[0], eval_streams=[])
    outputs = []

    class Outputs(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            outputs.append(strategy.mb_output.clone())

    strategy.plugins.insert(0, Outputs())
    strategy.eval([digits.test_stream[0]])

    def inputs(experience):
        x, y = experience.stacked.take(torch.arange(len(experience.stacked)))
        return x.float() / 255, y

    x, y = inputs(digits.train_stream[0])
    model = deepcopy(strategy.model).train()  # stock training mode normalises by the batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
        optimizer.step()
    for norm in model.modules():
        if isinstance(norm, TaskBatchNorm):
            norm.momentum = 1.0
    model(x)
    expected = model.eval()(inputs(digits.test_stream[0])[0])
    # the stock layer remembers the unbiased variance, ours the one that normalised: nearly the same on 40 images
    assert torch.allclose(outputs[0], expected, atol=0.05)
    assert (outputs[0].argmax(1) == expected.argmax(1)).float().mean() > 0.9


def test_ftml_draws_tasks_from_the_distribution_that_is_passed(digits):
    strategy = build("FTML", steps=5, task_sampler=lambda t: torch.arange(t) == t - 1)
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert labels == {(0, 0), (1, 1), (2, 2)}


def test_a_task_with_one_point_is_not_drawn_and_an_arrival_without_any_other_takes_no_step():
    stream = Sinusoids(rounds=2, images_per_round=3, held_out_per_round=5)
    model = stream.model()
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=stream.criterion,
        evaluator=EvaluationPlugin(),
        meta_batch_size=2,
        inner_lr=stream.inner_lr,
        steps=3,
    )
    assert [e.steps for e in evaluations(strategy, stream, 1)] == [0, 3, 6, 9, 12, 15]


def test_label_smoothing_reaches_inner_and_outer_loop(digits):
    plain, smoothed = [build("FTML", criterion=nn.CrossEntropyLoss(label_smoothing=s)) for s in (0.0, 0.1)]
    for strategy in (plain, smoothed):
        strategy.train(digits.train_stream[0], eval_streams=[])
    assert strategy.engine.criterion.label_smoothing == 0.1
    assert not torch.equal(parameters(plain), parameters(smoothed))


# -- labels in draws


def test_ftml_renames_labels_in_its_draws_and_not_in_the_update_procedure(digits):
    adapted_to = []
    strategy = build("FTML", permute_labels=True, steps=1)
    plain = build("FTML", steps=1)
    adapt = strategy.engine.adapt
    strategy.engine.adapt = lambda parameters, x, y, steps, **rule: (
        adapted_to.append(y) or adapt(parameters, x, y, steps, **rule)
    )
    for learner in (strategy, plain):
        learner.train(digits.train_stream[0], eval_streams=[])
    strategy.eval([digits.test_stream[0]])
    assert torch.equal(adapted_to[0], digits.train_stream[0].stacked.y)
    assert not torch.equal(parameters(strategy), parameters(plain))


def test_ftml_draws_classes_equally_often_if_it_is_told_to(digits):
    seen = []

    class Draws(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            seen.append((strategy.mbatch[3].clone(), strategy.mb_y.clone()))

    strategy = build("FTML", class_balanced=True, plugins=[Draws()], support_size=10, query_size=10)
    strategy.train(digits.train_stream[0], eval_streams=[])
    assert len(digits.train_stream[0].classes_in_this_experience) == 10
    for support, query in seen:
        for task in [*support, *query.view(2, 10)]:
            assert task.bincount(minlength=10).max() <= 2


# -- Avalanche's plugins


def test_a_penalty_and_a_change_of_gradients_act_on_the_meta_update(digits):
    class Freezes(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            for p in strategy.model.parameters():
                p.grad.zero_()

    class Penalty(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss += 1e6 * sum(p.square().sum() for p in strategy.model.parameters())

    free, frozen, penalised = (build("FTML", plugins=p) for p in ([], [Freezes()], [Penalty()]))
    start = parameters(free)
    for strategy in (free, frozen, penalised):
        strategy.train(digits.train_stream[0], eval_streams=[])
    assert torch.equal(parameters(frozen), start)
    assert not torch.equal(parameters(free), start)
    # Adam with a huge penalty: every parameter moves towards 0 by the learning rate in each of the two steps
    moved = (start.abs() - parameters(penalised).abs())[start.abs() > 0.05]
    assert torch.allclose(moved, torch.full_like(moved, 0.02), atol=1e-3)
