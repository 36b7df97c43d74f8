"""The strategies: closed forms, an evaluation that changes nothing, no leaks, counts by hand."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.core import SupervisedPlugin
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin, GDumbPlugin, ReplayPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.models import MultiHeadNet, RainbowNet, TaskBatchNorm
from ftml_bench.protocol import evaluations, held_out, run
from ftml_bench.strategies import (
    FTML,
    FollowTheLeader,
    FromScratch,
    GradientClip,
    LearningRateAfter,
    TrainOnEverything,
)

JOINT = {"train_mb_size": 40, "steps": 2}
LEARNERS = {
    "FTML": (FTML, {"meta_batch_size": 2, "steps": 2, "update_steps": 3}),
    "FTML transductive": (FTML, {"meta_batch_size": 2, "steps": 2, "batch_norm": "transductive"}),
    "FollowTheLeader": (FollowTheLeader, {**JOINT, "update_steps": 3}),
    "FollowTheLeader adam": (FollowTheLeader, {**JOINT, "fine_tuning": "adam", "inner_lr": 1e-3}),
    "TrainOnEverything": (TrainOnEverything, JOINT),
    "TrainOnEverything groups": (TrainOnEverything, {**JOINT, "batch_norm": "support"}),
    "FromScratch": (FromScratch, JOINT),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30)


def small_net():
    torch.manual_seed(0)
    return RainbowNet(filters=4, layers=3, image_size=14)


def build(name, *, model=None, **changes):
    cls, settings = LEARNERS[name]
    model = model or small_net()
    settings = {"eval_mb_size": 50, "criterion": nn.CrossEntropyLoss(label_smoothing=0.1), **settings, **changes}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return cls(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(), **settings)


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def losses(strategy, benchmark):
    return [e.loss for e in evaluations(strategy, benchmark, 20)]


# -- closed forms


def quadratic_tasks(tasks=4, points=30, dimensions=3):
    """Linear regression tasks whose inputs differ in scale, so that curvature matters; as an Avalanche stream."""
    rng = torch.Generator().manual_seed(5)
    data = []
    for _ in range(tasks):
        scale = 0.3 + torch.rand(dimensions, generator=rng, dtype=torch.float64)
        x = torch.randn(points, dimensions, generator=rng, dtype=torch.float64) * scale
        y = x @ torch.randn(dimensions, 1, generator=rng, dtype=torch.float64)
        data.append((x, y + 0.1 * torch.randn(points, 1, generator=rng, dtype=torch.float64)))
    return data


def as_stream(data):
    datasets = [
        AvalancheDataset([TensorDataset(x, y)], data_attributes=[TaskLabels(ConstantSequence(t, len(x)))])
        for t, (x, y) in enumerate(data)
    ]
    return with_task_labels(benchmark_from_datasets(train=datasets, test=datasets))


class HalfSquare(nn.Module):
    """f = ½ E (wᵀx − y)²"""

    def forward(self, output, target):
        return 0.5 * (output - target).square().mean()


def moments(data):
    """A = E[x xᵀ], b = −E[x y]: f = ½ wᵀAw + wᵀb + const (appendix A, with the sign that its text lacks)."""
    return [(x.T @ x / len(x), -(x.T @ y) / len(x)) for x, y in data]


def w_joint(data):
    a, b = (sum(m) for m in zip(*moments(data), strict=True))
    return -torch.linalg.solve(a, b).flatten()


def w_maml(data, alpha):
    identity = torch.eye(data[0][0].shape[1], dtype=torch.float64)
    shrink = [(identity - alpha * a) @ (identity - alpha * a) for a, _ in moments(data)]
    a = sum(s @ a for s, (a, _) in zip(shrink, moments(data), strict=True))
    b = sum(s @ b for s, (_, b) in zip(shrink, moments(data), strict=True))
    return -torch.linalg.solve(a, b).flatten()


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=False).double()


@pytest.mark.parametrize("engine", ["higher", "loop", "batched"])
def test_ftml_in_the_exact_setting_arrives_at_w_maml_and_joint_training_at_w_joint(engine):
    data = quadratic_tasks()
    alpha = 0.3
    model = linear()
    ftml = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        inner_steps=1,
        inner_lr=alpha,
        steps=100,
        engine=engine,
    )
    joint_model = linear()
    joint = TrainOnEverything(
        model=joint_model,
        optimizer=torch.optim.SGD(joint_model.parameters(), lr=1.0),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        train_mb_size=sum(len(x) for x, _ in data),
        draw="datapoints",
        steps=100,
    )
    for round in as_stream(data).train_stream:
        ftml.train(round, eval_streams=[])
        joint.train(round, eval_streams=[])
    assert torch.allclose(model.weight.flatten(), w_maml(data, alpha), atol=1e-4)
    assert torch.allclose(joint_model.weight.flatten(), w_joint(data), atol=1e-4)
    assert (w_maml(data, alpha) - w_joint(data)).norm() > 0.01


def test_a_training_step_uses_the_meta_gradient_written_by_hand():
    """One SGD step in the exact setting moves w by the closed-form gradient of Σ f_k(U_k(w)) / M."""
    data = quadratic_tasks()
    model = linear()
    w = model.weight.detach().clone().flatten()
    identity = torch.eye(3, dtype=torch.float64)
    gradient = torch.zeros(3, dtype=torch.float64)
    for a, b in moments(data):
        adapted = w - 0.3 * (a @ w + b.flatten())
        gradient += (identity - 0.3 * a) @ (a @ adapted + b.flatten()) / len(data)
    ftml = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        inner_steps=1,
        inner_lr=0.3,
        steps=1,
    )
    for round in as_stream(data).train_stream:
        ftml.buffer.add(round)  # all rounds known, none trained on yet
    ftml.train(as_stream(data).train_stream[0], eval_streams=[])
    assert torch.allclose(model.weight.flatten(), w - 0.5 * gradient, atol=1e-12)


# -- an evaluation changes nothing


@every_learner
def test_evaluating_after_every_arrival_or_never_ends_in_the_same_parameters(name, digits):
    evaluated, plain = build(name), build(name)
    global_state = torch.get_rng_state()
    for round in digits.train_stream:
        for arrival in arrivals(round, 20):
            evaluated.train(arrival, eval_streams=[])
            evaluated.eval(digits.test_stream)
    torch.set_rng_state(global_state)
    for round in digits.train_stream:
        for arrival in arrivals(round, 20):
            plain.train(arrival, eval_streams=[])
    assert torch.equal(parameters(evaluated), parameters(plain))
    for a, b in zip(evaluated.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(a, b)


@every_learner
def test_an_evaluation_leaves_optimiser_random_states_and_the_iteration_as_they_were(name, digits):
    strategy = build(name)
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.train(digits.train_stream[1], eval_streams=[])
    strategy.mbatch, strategy.mb_output = [torch.ones(1)], torch.ones(2)
    before = deepcopy((strategy.model.state_dict(), strategy.optimizer.state_dict(), strategy.rng.get_state()))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    iteration = strategy.mbatch, strategy.mb_output, strategy.loss

    strategy.eval(digits.test_stream)

    after = (strategy.model.state_dict(), strategy.optimizer.state_dict(), strategy.rng.get_state())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert (strategy.mbatch, strategy.mb_output, strategy.loss) == iteration


def test_an_error_inside_an_evaluation_leaves_the_strategy_in_training_order(digits):
    class Breaks(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            raise RuntimeError("as plugins do")

    strategy = build("FTML")
    strategy.train(digits.train_stream[0], eval_streams=[])
    model = strategy.model.train()
    strategy.is_training = True
    strategy.plugins.insert(0, Breaks())
    with pytest.raises(RuntimeError, match="as plugins do"):
        strategy.eval(digits.test_stream)
    assert strategy.model is model
    assert strategy.model.training
    assert strategy.is_training


@every_learner
def test_a_plugin_that_evaluates_inside_an_iteration_does_no_harm(name, digits):
    class Evaluates(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.eval([digits.test_stream[0]])

    disturbed, plain = build(name, plugins=[Evaluates()]), build(name)
    for strategy in (disturbed, plain):
        for round in digits.train_stream[:2]:
            strategy.train(round, eval_streams=[])
    assert torch.equal(parameters(disturbed), parameters(plain))


# -- no leaks


@every_learner
def test_poisoned_future_data_and_held_out_labels_change_no_prediction(name):
    class Outputs(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def after_eval_forward(self, strategy, **kwargs):
            self.seen.append(strategy.mb_output.clone())

    seen = []
    for poison in (False, True):
        digits = RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30)
        outputs = Outputs()
        strategy = build(name, plugins=[outputs])
        for t, round in enumerate(digits.train_stream):
            pieces = list(arrivals(round, 20))
            for i, arrival in enumerate(pieces):
                if poison:
                    coming = [p.stacked for p in pieces[i + 1 :]] + [e.stacked for e in digits.train_stream[t + 1 :]]
                    kept = [(s, s.x[s.rows].clone(), s.y.clone()) for s in coming]
                    for s in coming:
                        s.x[s.rows] = 255
                        s.y.zero_()
                    held_out(digits, round).stacked.y.fill_(0)
                strategy.train(arrival, eval_streams=[])
                strategy.eval([held_out(digits, round)])
                if poison:
                    for s, x, y in kept:
                        s.x[s.rows] = x
                        s.y.copy_(y)
        seen.append(torch.cat(outputs.seen))
    assert torch.equal(*seen)


@every_learner
def test_the_order_of_evaluations_changes_nothing(name, digits):
    strategy = build(name)
    for round in digits.train_stream:
        strategy.train(round, eval_streams=[])

    def outputs(order):
        found = {}

        class Outputs(SupervisedPlugin):
            def after_eval_forward(self, strategy, **kwargs):
                found[strategy.experience.current_experience] = strategy.mb_output.clone()

        strategy.plugins.insert(0, Outputs())
        strategy.eval([digits.test_stream[t] for t in order])
        strategy.plugins.pop(0)
        return found

    first, second = outputs([0, 1, 2]), outputs([2, 0, 1, 2])
    assert all(torch.equal(first[t], second[t]) for t in first)


def test_the_support_rule_gives_the_same_result_for_any_evaluation_batch_size(digits):
    results = []
    for size in (1, 7, 100):
        strategy = build("FTML", eval_mb_size=size)
        results.append([e.accuracy for e in evaluations(strategy, digits, 20)])
    assert results[0] == results[1] == results[2]


def test_an_unseen_task_is_predicted_without_adaptation_by_statistics_of_past_supports(digits):
    strategy = build("FTML")
    strategy.train(digits.train_stream[0], eval_streams=[])
    norm = next(m for m in strategy.model.modules() if isinstance(m, TaskBatchNorm))
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))

    outputs = []

    class Outputs(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            outputs.append(strategy.mb_output.clone())

    strategy.plugins.insert(0, Outputs())
    strategy.eval([digits.test_stream[2]])
    stacked = digits.test_stream[2].stacked
    model = deepcopy(strategy.model).eval()
    expected = model(stacked.take(torch.arange(len(stacked)))[0].float() / 255)
    assert torch.allclose(outputs[0], expected, atol=1e-6)


# -- one seed, one result; all start from the same


@every_learner
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name, digits):
    assert losses(build(name, seed=1), digits) == losses(build(name, seed=1), digits)
    assert losses(build(name, seed=1), digits) != losses(build(name, seed=2), digits)


# -- each strategy does what it says


@every_learner
def test_costs_are_counted_as_by_hand(name, digits):
    strategy = build(name)
    list(evaluations(strategy, digits, 20))  # 3 rounds of 2 arrivals of 20, 2 steps each
    steps, images, gradients = 6 * 2, 6 * 2 * 40, 6 * 2 * 40
    updates = {"FTML": 3, "FTML transductive": 5, "FollowTheLeader": 3, "FollowTheLeader adam": 5}.get(name, 0)
    if name.startswith("FTML"):
        gradients = 12 * 2 * (5 * 10 + 10 + 5 * 10)  # T (K S + Q + K S)
    if name.startswith("FollowTheLeader"):  # nothing to train on in the first round
        steps, images, gradients = steps * 2 // 3, images * 2 // 3, gradients * 2 // 3
    assert strategy.cost.steps == strategy.clock.train_iterations == steps
    assert strategy.cost.images == images
    assert strategy.cost.gradient_evaluations == gradients + updates * 3 * (20 + 40)


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


def test_from_scratch_starts_every_round_anew_and_trains_on_through_its_arrivals(digits):
    strategy = build("FromScratch")
    first = parameters(strategy)
    starts = []

    class Starts(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            starts.append((parameters(strategy), len(strategy.optimizer.state)))

    strategy.plugins.insert(0, Starts())
    list(evaluations(strategy, digits, 20))
    for i, (start, optimizer_entries) in enumerate(starts):
        assert torch.equal(start, first) == (i % 2 == 0)
        assert (optimizer_entries == 0) == (i % 2 == 0)


def test_from_scratch_draws_from_the_current_round_alone(digits):
    strategy = build("FromScratch")
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert labels == {(0, 0), (1, 1), (2, 2)}


def test_from_scratch_with_a_step_factor_takes_so_many_times_the_steps(digits):
    strategy = build("FromScratch", step_factor=10)
    list(evaluations(strategy, digits, 20))
    assert strategy.cost.steps == 10 * 12


def test_follow_the_leader_trains_on_earlier_rounds_only(digits):
    strategy = build("FollowTheLeader")
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert {current for current, _ in labels} == {1, 2}
    assert all(label < current for current, label in labels)


def test_train_on_everything_draws_from_all_rounds_the_current_included(digits):
    strategy = build("TrainOnEverything", steps=20)
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert labels == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}


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


def test_steps_default_to_an_epoch_of_the_arrival(digits):
    strategy = build("FTML", steps=None, train_mb_size=8)
    assert [e.steps for e in evaluations(strategy, digits, 20)] == [3, 6, 9, 12, 15, 18]


def test_label_smoothing_reaches_inner_and_outer_loop(digits):
    plain, smoothed = [build("FTML", criterion=nn.CrossEntropyLoss(label_smoothing=s)) for s in (0.0, 0.1)]
    for strategy in (plain, smoothed):
        strategy.train(digits.train_stream[0], eval_streams=[])
    assert strategy.engine.criterion.label_smoothing == 0.1
    assert not torch.equal(parameters(plain), parameters(smoothed))


# -- a head a task


def multi_head(heads=3):
    torch.manual_seed(0)
    return MultiHeadNet(heads=heads, filters=4, layers=3, image_size=14, classes=10)


@pytest.mark.parametrize("rule", ["running", "support", "transductive"])
def test_train_on_everything_trains_the_heads_of_the_rounds_it_has_and_tests_by_the_right_one(rule, digits):
    model = multi_head()
    strategy = TrainOnEverything(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(),
        eval_mb_size=50,
        steps=3,
        batch_norm=rule,
        train_mb_size=40,
    )
    outputs = []

    class Outputs(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            outputs.append((strategy.mb_output.clone(), strategy.model))

    strategy.plugins.insert(0, Outputs())
    first = model.heads.weight.detach().clone().view(3, 10, -1)
    for t, round in enumerate(digits.train_stream[:2]):
        strategy.train(round, eval_streams=[])
        changed = (model.heads.weight.view(3, 10, -1) != first).any(2).any(1).tolist()
        assert changed == [True, t == 1, False]
    strategy.eval([digits.test_stream[1], digits.test_stream[0]])
    for t, (output, tested) in zip((1, 0), outputs, strict=True):
        x, _ = digits.test_stream[t].stacked.take(torch.arange(30))
        assert output.shape == (30, 10)
        if rule != "transductive":
            assert torch.allclose(output, tested(x.float() / 255, t), atol=1e-6)
            assert not torch.allclose(output, tested(x.float() / 255, 1 - t), atol=1e-3)


def test_train_on_everything_learns_tasks_that_contradict_each_other_with_a_head_for_each():
    """Round 1 is round 0 with other labels: one head for both cannot know better than a coin."""
    digits = RainbowDigits(rounds=1, images_per_round=60, held_out_per_round=60)
    kept = digits.train_stream[0].stacked.y < 2
    data = digits.train_stream[0].stacked.subset(kept.nonzero().flatten())
    other = StackedDataset(data.x, 1 - data.y, data.rows)
    tested = [StackedDataset(data.x.clone(), d.y, d.rows) for d in (data, other)]  # a copy: known images count here
    stream = TaskStream(
        title="contradiction", train=[data, other], held_out=tested, threshold=None, checkpoints=[len(data)],
        arrivals=len(data), criterion=nn.CrossEntropyLoss(), inner_lr=0.1, update_steps=1,
    )  # fmt: skip
    accuracies = {}
    for model in (multi_head(2), small_net()):
        strategy = TrainOnEverything(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
            evaluator=EvaluationPlugin(),
            eval_mb_size=100,
            steps=60,
            batch_norm="support",
            train_mb_size=40,
        )
        accuracies[type(model)] = list(evaluations(strategy, stream, len(data)))[-1].accuracy
    assert accuracies[MultiHeadNet] == 1
    assert accuracies[RainbowNet] < 0.9


def test_train_on_everything_takes_avalanches_own_growing_multi_head_models(digits):
    model = MTSimpleMLP(input_size=3 * 14 * 14, hidden_size=8)
    strategy = TrainOnEverything(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(),
        eval_mb_size=50,
        steps=2,
        train_mb_size=40,
    )
    results = list(evaluations(strategy, digits, 20))
    assert sorted(model.classifier.classifiers) == ["0", "1", "2"]
    assert all(np.isfinite(e.loss) for e in results)


# -- draws and learning rates


def test_ftml_renames_labels_in_its_draws_and_not_in_the_update_procedure(digits):
    adapted_to = []
    strategy = build("FTML", permute_labels=True, steps=1)
    plain = build("FTML", steps=1)
    adapt = strategy.engine.adapt
    strategy.engine.adapt = lambda parameters, x, y, steps: adapted_to.append(y) or adapt(parameters, x, y, steps)
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


@pytest.mark.parametrize("cls", [TrainOnEverything, FromScratch])
def test_the_learning_rate_changes_after_so_many_steps_of_the_whole_stream(cls, digits, recwarn):
    rates = []

    class Rates(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    model = small_net()
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        evaluator=EvaluationPlugin(),
        plugins=[LearningRateAfter(after_steps=5, lr=0.001), Rates()],
        train_mb_size=40,
        steps=2,
        eval_mb_size=50,
    )
    list(evaluations(strategy, digits, 20))
    assert rates == [0.01] * 5 + [0.001] * 7
    assert not [w for w in recwarn if "incompatible callbacks" in str(w.message)]


@pytest.mark.parametrize(("setting", "message"), [({"after_steps": 0}, "after_steps=0"), ({"lr": 0}, "lr=0")])
def test_bad_changes_of_the_learning_rate_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        LearningRateAfter(**{"after_steps": 1, "lr": 0.1, **setting})


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_gradients_are_cut_element_by_element_before_the_update(cls, digits):
    cut = {}

    def trained(clip):
        class Gradients(SupervisedPlugin):
            def before_update(self, strategy, **kwargs):
                cut.setdefault(clip, torch.cat([p.grad.flatten().clone() for p in strategy.model.parameters()]))

        torch.manual_seed(0)
        model = small_net()
        plugins = [Gradients()] if clip is None else [GradientClip(clip), Gradients()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = cls(model=model, optimizer=optimizer, plugins=plugins, evaluator=EvaluationPlugin(), steps=1)
        strategy.train(digits.train_stream[0], eval_streams=[])

    trained(None)
    trained(0.01)
    assert float(cut[None].abs().max()) > 0.01
    assert torch.equal(cut[0.01], cut[None].clamp(-0.01, 0.01))


def test_follow_the_leader_fine_tunes_by_cut_gradients(digits):
    model = small_net()
    strategy = FollowTheLeader(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        inner_lr=0.5,
        inner_clip=0.01,
        update_steps=3,
        evaluator=EvaluationPlugin(),
    )
    strategy.train(digits.train_stream[0], eval_streams=[])
    model.eval()
    copy = strategy.model_for(digits.test_stream[0])
    moved = max(float((a - b).abs().max()) for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert moved == pytest.approx(3 * 0.5 * 0.01, rel=1e-4)


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_clip_that_would_stop_all_is_refused(value):
    with pytest.raises(UsageError, match="clip"):
        GradientClip(value)
    model = small_net()
    with pytest.raises(UsageError, match="inner_clip="):
        FollowTheLeader(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), inner_clip=value)


# -- Avalanche


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


@every_learner
@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (lambda: ReplayPlugin(mem_size=20), "ReplayPlugin replaced the dataloader"),
        (lambda: GDumbPlugin(20), "GDumbPlugin replaced the model"),
    ],
)
def test_plugins_that_replace_the_dataloader_or_the_model_are_refused(name, digits, plugin, message):
    strategy = build(name, plugins=[plugin()])
    with pytest.raises(UsageError, match=message) as error:  # noqa: PT012 (the second experience shows it)
        for round in digits.train_stream:
            strategy.train(round, eval_streams=[])
    assert "\n" not in str(error.value)


def test_a_stock_stream_with_a_users_own_batch_norm_model_runs():
    torch.manual_seed(0)
    x, y = torch.rand(4, 30, 3, 8, 8), torch.randint(0, 3, (4, 30))

    def dataset(t):
        tensors = TensorDataset(x[t], y[t])
        tensors.targets = y[t].tolist()
        return as_classification_dataset(tensors)

    stream = benchmark_from_datasets(train=[dataset(0), dataset(1)], test=[dataset(2), dataset(3)])
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    weight = model[1].weight
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=10,
        eval_mb_size=10,
        evaluator=EvaluationPlugin(),
    )
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        strategy.eval(stream.test_stream)
    assert strategy.cost.steps == 6
    assert type(model[1]) is TaskBatchNorm
    assert model[1].weight is weight


def test_positional_and_misspelt_keywords():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters())
    for cls in (FTML, TrainOnEverything, FromScratch, FollowTheLeader):
        strategy = cls(model, optimizer, nn.CrossEntropyLoss(), 32, 2, 64, evaluator=None)
        assert (strategy.train_mb_size, strategy.train_epochs, strategy.eval_mb_size) == (32, 2, 64)
        with pytest.raises(TypeError, match="inner_stpes"):
            cls(model=model, optimizer=optimizer, inner_stpes=1)


@pytest.mark.parametrize(
    ("cls", "setting", "message"),
    [
        (FTML, {"meta_batch_size": 0}, "meta_batch_size=0"),
        (FTML, {"support_size": None}, "both None"),
        (FTML, {"batch_norm": "running"}, "batch norm rule of FTML"),
        (FTML, {"batch_norm": "suport"}, "did you mean 'support'"),
        (FTML, {"steps": 0}, "steps=0"),
        (FTML, {"update_size": 0}, "update_size=0"),
        (FollowTheLeader, {"fine_tuning": "sgd"}, "unknown fine-tuning 'sgd'"),
        (FollowTheLeader, {"batch_norm": "running"}, "batch norm rule of FollowTheLeader"),
        (FollowTheLeader, {"update_steps": 0}, "update_steps=0"),
        (FromScratch, {"step_factor": 0}, "step_factor=0"),
        (TrainOnEverything, {"draw": "task"}, "did you mean 'tasks'"),
        (TrainOnEverything, {"group_size": 0}, "group_size=0"),
    ],
)
def test_bad_settings_are_refused_with_one_line(cls, setting, message):
    model = small_net()
    with pytest.raises(UsageError, match=message) as error:
        cls(model=model, optimizer=torch.optim.Adam(model.parameters()), evaluator=None, **setting)
    assert "\n" not in str(error.value)


def test_run_takes_the_benchmarks_own_arrivals(digits):
    assert len(run(build("FTML"), digits, progress=False)) == 3 * 2
