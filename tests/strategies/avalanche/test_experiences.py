"""Which tasks an experience's points are of and what predicts them, on streams made of others."""

import warnings
from itertools import pairwise

import pytest
import torch
from avalanche.benchmarks import (
    CLStream,
    DatasetExperience,
    EagerCLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    split_online_stream,
    with_task_labels,
)
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskLabels, as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML, FollowTheLeader, TrainOnEverything
from tests.strategies.avalanche.small_experiences import (
    LEARNERS,
    adapted_by_hand,
    benchmark,
    close,
    data_of,
    every_learner,
    held,
    learner,
    net,
    points,
    predicted_by,
    trained,
    validation,
    wrapped,
)


def data_incremental(stream):
    parts = [e.dataset.subset(range(i, 20, 2)) for e in stream.train_stream for i in (0, 1)]
    return EagerCLStream("train", [DatasetExperience(dataset=part) for part in parts])


MADE = {
    "with a validation stream": validation,
    "shuffled": lambda s: EagerCLStream("shuffled", [s.train_stream[i] for i in (2, 0, 1)]),
    "wrapped": wrapped,
    "data-incremental": data_incremental,
    "sliced": lambda s: s.train_stream[1:],
    "cut online": lambda s: split_online_stream(validation(s), 4, seed=0),
    "cut into arrivals": lambda s: [piece for e in validation(s) for piece in arrivals(e, 4)],
}


@pytest.mark.parametrize("kind", MADE)
def test_an_evaluation_finds_the_data_of_its_task_in_every_stream_made_of_another_one(kind):
    stream = benchmark()
    strategy = trained(MADE[kind](stream))
    for k, experience in enumerate(stream.test_stream):
        arrived = [(r, r.rows_of((k,))) for r in strategy.buffer.rounds.values()]
        own = [r.read(rows, train=False) for r, rows in arrived if len(rows)]
        if not own:
            assert (kind, k) == ("sliced", 0)
            assert strategy.model_for(experience) is strategy.model
            continue
        x, y = (torch.cat(parts) for parts in zip(*own, strict=True))
        assert set(y.tolist()) <= set(data_of(stream.train_stream[k])[1].tolist())
        assert close(predicted_by(strategy, experience), adapted_by_hand(strategy.model, x, y))


@pytest.mark.parametrize("kind", MADE)
def test_without_task_labels_an_evaluation_adapts_to_all_rounds_of_such_a_stream(kind):
    stream = benchmark(task_labels=False)
    strategy = trained(MADE[kind](stream))
    everything = strategy.buffer.everything(list(strategy.buffer.rounds))[0]  # rounds of one size
    for experience in [*stream.test_stream, DatasetExperience(dataset=stream.test_stream[0].dataset)]:
        assert close(predicted_by(strategy, experience), adapted_by_hand(strategy.model, *everything))


def test_points_of_which_nothing_says_the_task_are_predicted_after_adapting_to_all_tasks():
    stream = benchmark()
    strategy = trained(stream.train_stream)
    plain = DatasetExperience(dataset=AvalancheDataset([points(12)]), current_experience=0)
    everything = strategy.buffer.everything([0, 1, 2])[0]
    assert close(predicted_by(strategy, plain), adapted_by_hand(strategy.model, *everything))


def test_a_multi_head_model_gets_the_labels_that_only_the_data_carry():
    stream = benchmark()
    split = benchmark_with_validation_stream(stream, validation_size=0.2, seed=0)
    for cls in LEARNERS:
        torch.manual_seed(0)
        model = MTSimpleMLP(input_size=6, hidden_size=8)
        strategy = trained(split.train_stream, cls, model=model)
        strategy.eval(split.valid_stream)
        assert set(model.classifier.classifiers) == {"0", "1", "2"}


# -- points of several tasks in one experience


def joint(stream, **changes):
    """All points of a stream in one experience, those of all tasks mixed."""
    experiences = [e.dataset for e in stream]
    dataset = experiences[0]
    for other in experiences[1:]:
        dataset = dataset.concat(other)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(3)).tolist()
    experience = DatasetExperience(dataset=dataset.subset(order), current_experience=0)
    experience.origin_stream = CLStream("test", [experience])
    return experience


class Outputs(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.found = []

    def after_eval_iteration(self, strategy, **kwargs):
        self.found.append((strategy.mb_x, strategy.mb_y, strategy.mb_task_id, strategy.mb_output))


@pytest.mark.parametrize("named", [True, False])
def test_each_point_of_a_joint_test_set_is_predicted_by_the_copy_of_its_own_task(named):
    stream = benchmark()
    outputs = Outputs()
    strategy = trained(
        stream.train_stream, plugins=[outputs], evaluator=EvaluationPlugin(accuracy_metrics(stream=True))
    )
    experience = joint(stream.test_stream)
    if named:
        experience.task_labels = [2, 0, 1]
    results = strategy.eval(experience)
    x, y, tasks, output = (torch.cat(parts) for parts in zip(*outputs.found, strict=True))
    copies = [adapted_by_hand(strategy.model, *data_of(e)) for e in stream.train_stream]
    expected = torch.stack([copies[t][0] @ p + copies[t][1] for p, t in zip(x, tasks.tolist(), strict=True)])
    assert len(x) == 30
    assert sorted(tasks.tolist()) == sorted([0, 1, 2] * 10)
    assert torch.allclose(output, expected, atol=1e-5)
    (accuracy,) = [v for k, v in results.items() if k.startswith("Top1_Acc_Stream")]
    assert accuracy == pytest.approx(float((expected.argmax(1) == y).float().mean()))
    assert strategy.model.weight.equal(trained(stream.train_stream).model.weight)  # nothing is changed


def test_a_joint_test_set_is_predicted_head_by_head():
    stream = benchmark()
    for cls in (FTML, TrainOnEverything):
        torch.manual_seed(0)
        model = MTSimpleMLP(input_size=6, hidden_size=8)
        model.features[2].p = 0.0
        outputs = Outputs()
        strategy = trained(stream.train_stream[:2], cls, model=model, plugins=[outputs])
        strategy.eval(joint(stream.test_stream))  # the head of task 2 is still to come
        assert "2" not in model.classifier.classifiers
        x, _, tasks, output = (torch.cat(parts) for parts in zip(*outputs.found, strict=True))
        assert len(x) == 30
        # An adaptation of FTML sees how many classes there are in all, in Avalanche's padding of the heads.
        for k in (0, 1) if cls is TrainOnEverything else ():
            outputs.found.clear()
            strategy.eval(stream.test_stream[k])
            own_x, _, _, own = (torch.cat(parts) for parts in zip(*outputs.found, strict=True))
            places = [int((x == point).all(1).nonzero()[0]) for point in own_x]
            assert tasks[places].tolist() == [k] * 10
            assert torch.allclose(output[places][:, : own.shape[1]], own, atol=1e-6)


def test_labels_that_do_not_ride_in_the_minibatch_are_read_too():
    stream = benchmark()
    outputs = Outputs()
    strategy = trained(stream.train_stream, plugins=[outputs])
    test = joint(stream.test_stream)
    labels = list(test.dataset.targets_task_labels)
    x, y = data_of(test)
    silent = DataAttribute(labels, "targets_task_labels", use_in_getitem=False)
    dataset = AvalancheDataset([TensorDataset(x, y)], data_attributes=[silent])
    strategy.eval(DatasetExperience(dataset=dataset, current_experience=0))
    found = torch.cat([output for *_, output in outputs.found])
    copies = [adapted_by_hand(strategy.model, *data_of(e)) for e in stream.train_stream]
    expected = torch.stack([copies[t][0] @ p + copies[t][1] for p, t in zip(x, labels, strict=True)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_tasks_without_data_are_predicted_by_the_model_itself_in_a_joint_test_set():
    stream = benchmark()
    outputs = Outputs()
    strategy = trained(stream.train_stream[:1], plugins=[outputs])
    strategy.eval(joint(stream.test_stream))
    x, _, tasks, output = (torch.cat(parts) for parts in zip(*outputs.found, strict=True))
    unadapted = strategy.model(x).detach()
    weight, bias = adapted_by_hand(strategy.model, *data_of(stream.train_stream[0]))
    assert torch.allclose(output[tasks > 0], unadapted[tasks > 0], atol=1e-6)
    assert torch.allclose(output[tasks == 0], (x @ weight.T + bias)[tasks == 0], atol=1e-5)


@pytest.mark.parametrize("phase", ["train", "eval"])
def test_several_tasks_without_a_label_for_every_point_are_refused(phase):
    stream = benchmark()
    strategy = trained(stream.train_stream)
    experience = DatasetExperience(dataset=AvalancheDataset([points(12)]), current_experience=5)
    experience.task_labels = [0, 1]
    experience.origin_stream = CLStream("joint", [experience])
    with pytest.raises(UsageError, match=r"experience 5 holds the tasks \[0, 1\], and its data do not say") as error:
        getattr(strategy, phase)(experience)
    assert "\n" not in str(error.value)


@every_learner
def test_points_are_drawn_with_their_own_task_labels(cls):
    """In a round of several tasks; the label of each point stands in its input."""
    rng = torch.Generator().manual_seed(0)
    datasets = []
    for tasks in ([3, 5], [4, 4], [0, 1]):
        labels = torch.tensor(tasks * 10)
        x = torch.cat([labels[:, None].float(), torch.randn(20, 5, generator=rng)], 1)
        data = TensorDataset(x, labels % 6)
        data.targets = (labels % 6).tolist()
        datasets.append(
            as_classification_dataset(data).update_data_attribute("targets_task_labels", TaskLabels(labels.tolist()))
        )
    seen = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            assert torch.equal(strategy.mb_task_id, strategy.mb_x[:, 0].long())
            seen.extend(strategy.mb_task_id.tolist())

    trained(benchmark_from_datasets(train=datasets).train_stream, cls, plugins=[Look()], steps=20)
    assert set(seen) == ({3, 4, 5} if cls is FollowTheLeader else {0, 1, 3, 4, 5})


# -- what is said where data are there, and cannot be found


def test_an_evaluation_without_data_although_the_round_is_there_is_said_once_by_name():
    stream = benchmark()
    plain = benchmark_from_datasets(train=[AvalancheDataset([points(20, seed=s)]) for s in range(3)])
    strategy = trained(plain.train_stream[:2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            strategy.eval(stream.test_stream)
    said = [str(w.message) for w in caught if "unadapted" in str(w.message)]
    assert said == [  # task 0 is that of data without labels
        f"FTML predicts experience {k} of stream 'test' by the unadapted model: no data of its tasks [{k}] have "
        f"arrived; what has arrived has no task labels"
        for k in (1, 2)
    ]
    with pytest.warns(UserWarning, match=r"no data of its tasks \[1, 2\] have arrived"):
        strategy.eval(joint(stream.test_stream))


def test_it_is_said_where_a_round_has_another_label_than_its_test_set():
    stream = benchmark()
    other = [with_task_labels(e) for e in wrapped(stream)]
    for label, experience in zip((7, 8, 9), other, strict=True):
        experience.task_labels = [label]
    strategy = trained(other[:1])
    with pytest.warns(UserWarning, match=r"experience 0 of .* no data of its tasks \[0\] .* has the task labels \[7\]"):
        strategy.eval(stream.test_stream)


def test_nothing_is_said_where_a_task_is_still_to_come_or_no_copy_differs():
    stream = benchmark()
    plain = benchmark_from_datasets(train=[AvalancheDataset([points(20, seed=s)]) for s in range(3)])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unadapted model")
        for rounds in (1, 2):
            strategy = trained(stream.train_stream[:rounds])
            strategy.eval(stream.test_stream)
            strategy.eval(joint(stream.test_stream))
        trained(plain.train_stream, TrainOnEverything).eval(stream.test_stream)


# -- training metrics


def test_training_metrics_of_an_arrival_without_steps_say_nothing():
    metrics = [accuracy_metrics(epoch=True, minibatch=True), loss_metrics(epoch=True)]
    strategy = learner(FollowTheLeader, evaluator=EvaluationPlugin(*metrics), eval_every=1)
    evaluated = []

    class Look(SupervisedPlugin):
        def after_eval(self, s, **kwargs):
            evaluated.append(s.clock.train_exp_counter)

    strategy.plugins.insert(0, Look())
    stream = benchmark()
    strategy.train(stream.train_stream[0])
    assert not [name for name in strategy.evaluator.get_last_metrics() if "train_phase" in name]
    assert evaluated  # a periodic evaluation is made all the same
    strategy.train(stream.train_stream[1])
    said = {name.split("/")[0] for name in strategy.evaluator.get_last_metrics() if "train_phase" in name}
    assert said == {"Top1_Acc_Epoch", "Top1_Acc_MB", "Loss_Epoch"}


def test_the_steps_of_naive_and_of_our_learners_are_as_many_on_a_validation_split():
    split = benchmark_with_validation_stream(benchmark(), validation_size=0.3, seed=0)
    model = net()
    naive = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=8, evaluator=None)
    ours = learner(TrainOnEverything)
    for experience in split.train_stream:
        naive.train(experience, eval_streams=[])
        ours.train(experience, eval_streams=[])
    assert naive.clock.train_iterations == ours.clock.train_iterations == sum(-(-14 // 8) for _ in range(3))
    assert all(a <= b for a, b in pairwise(held(ours)))
