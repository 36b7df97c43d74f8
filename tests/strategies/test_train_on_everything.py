"""TrainOnEverything: all rounds, and a head a task."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import RainbowDigits
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.models import MultiHeadNet, RainbowNet
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import TrainOnEverything
from tests.strategies.learners import build, small_net


def test_train_on_everything_draws_from_all_rounds_the_current_included(digits):
    strategy = build("TrainOnEverything", steps=20)
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert labels == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}


@pytest.mark.parametrize("name", ["TrainOnEverything", "FollowTheLeader", "FromScratch"])
@pytest.mark.parametrize(
    ("minibatch", "group"),
    [(100, 20), (1, 1), (7, 7), (16, 16), (30, 15), (32, 16), (50, 25), (64, 16), (97, 97), (128, 16), (250, 25)],
)
def test_a_minibatch_has_as_many_points_as_it_is_asked_for(digits, name, minibatch, group):
    """Groups share it evenly: it is never rounded down to whole groups of twenty."""
    rule = {} if name == "FromScratch" else {"batch_norm": "support"}
    strategy = build(name, steps=1, train_mb_size=minibatch, **rule)
    drawn = []

    class Points(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            drawn.append(strategy.mb_task_id.clone())

    strategy.plugins.insert(0, Points())
    list(evaluations(strategy, digits, 20))
    assert {len(labels) for labels in drawn} == {minibatch}
    if name != "FromScratch":
        assert strategy.group_size == group
        assert all(len(part.unique()) == 1 for labels in drawn for part in labels.split(group))


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


def test_a_draw_that_groups_have_no_use_for_is_refused():
    with pytest.raises(UsageError, match="draw='datapoints' is of mixed minibatches: expected batch_norm='running'"):
        build("TrainOnEverything", batch_norm="support", draw="datapoints")
