"""Which plugins a learner takes, and which are refused before anything trains."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import MTSimpleMLP
from avalanche.training.losses import ICaRLLossPlugin
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    CWRStarPlugin,
    EWCPlugin,
    FeatureDistillationPlugin,
    FeCAMOracle,
    FromScratchTrainingPlugin,
    GDumbPlugin,
    GenerativeReplayPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    LwFPlugin,
    MASPlugin,
    MIRPlugin,
    NCMOracle,
    RARPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.strategies import FOML, FTML, FTMLVS, FromScratch, MetaSGD, TrainOnEverything, per_round
from tests.strategies.avalanche.small import LEARNERS, feature_model, flat, mlp, model, train, values


@pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
def test_a_plugin_that_adds_points_to_the_minibatch_is_refused(cls, stream):
    class Generates(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            for i in (0, 1, -1):
                strategy.mbatch[i] = torch.cat([strategy.mbatch[i]] * 2)

    net = model()
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        evaluator=None,
        train_mb_size=4,
        plugins=[Generates()],
    )
    with pytest.raises(UsageError, match="Generates replaced the minibatch of") as error:  # noqa: PT012 (some take no step at first)
        for experience in stream.train_stream:
            strategy.train(experience, eval_streams=[])
    assert "\n" not in str(error.value)


def linear():
    return model()


def heads():
    return MTSimpleMLP(input_size=5, hidden_size=4)


UNFIT = [
    (linear, lambda net: ReplayPlugin(20), "ReplayPlugin replaced the dataloader of"),
    (linear, lambda net: per_round(ReplayPlugin(20)), "ReplayPlugin replaced the dataloader of"),
    (linear, lambda net: BiCPlugin(mem_size=20), "BiCPlugin replaced the dataloader of"),
    (heads, lambda net: BiCPlugin(mem_size=20), "BiCPlugin replaced the dataloader of"),
    (linear, lambda net: CoPEPlugin(mem_size=20, n_classes=6), "CoPEPlugin replaced the dataloader of"),
    (heads, lambda net: GSS_greedyPlugin(20, input_size=[5]), "GSS_greedyPlugin replaced the dataloader of"),
    (linear, lambda net: RARPlugin(4, 20), "RARPlugin replaced the dataloader of"),
    (linear, lambda net: GDumbPlugin(20), "GDumbPlugin replaced the model of"),
    (linear, lambda net: GenerativeReplayPlugin(), "GenerativeReplayPlugin replaced the minibatch of"),
    (
        linear,
        lambda net: GenerativeReplayPlugin(is_weighted_replay=True),
        "GenerativeReplayPlugin replaced the minibatch",
    ),
    (heads, CWRStarPlugin, "CWRStarPlugin works on the last layer of a model: MTSimpleMLP has one for every task"),
    (heads, lambda net: LFLPlugin(1.0), "LFLPlugin needs a model with get_features .*: MTSimpleMLP is none"),
    (heads, lambda net: FeatureDistillationPlugin(), "reads the features of a whole minibatch: MTSimpleMLP"),
    (mlp, lambda net: FeatureDistillationPlugin(), "puts its own into model.features, where SimpleMLP has its layers"),
    (linear, lambda net: FeatureDistillationPlugin(), "keeps in model.features: Linear keeps none"),
    (feature_model, lambda net: FeatureDistillationPlugin(mode="mse"), "with mode='mse': expected mode='cosine'"),
    (
        linear,
        lambda net: NCMOracle(),
        "NCMOracle needs a model .* a NCMClassifier: Linear has not",
    ),
    (linear, lambda net: FeCAMOracle(), "FeCAMOracle needs a model .* a FeCAMClassifier: Linear has not"),
]


@pytest.mark.parametrize(("build", "plugin", "message"), UNFIT)
@pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
def test_a_plugin_that_cannot_work_is_refused_before_anything_trains(cls, build, plugin, message, stream, tasks):
    net = build()
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        evaluator=None,
        train_mb_size=4,
        plugins=[plugin(net)],
    )
    start = values(net)
    with pytest.raises(UsageError, match=message) as error:  # noqa: PT012 (FollowTheLeader takes no step at first)
        for experience in (tasks if build is heads else stream).train_stream:
            strategy.train(experience, eval_streams=[])
    assert "\n" not in str(error.value)
    assert strategy.cost.steps == 0
    assert all(map(torch.equal, start, values(net)))


def test_a_loss_of_the_minibatch_at_hand_is_refused_by_ftml_alone(stream):
    def build(cls):
        net = model()
        return cls(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            criterion=ICaRLLossPlugin(),
            evaluator=None,
            train_mb_size=4,
        )

    with pytest.raises(UsageError, match="ICaRLLossPlugin distils the minibatch at hand"):
        build(FTML).train(stream.train_stream[0], eval_streams=[])
    train(build(TrainOnEverything), stream)


@pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
def test_every_learner_takes_every_plugin(cls, stream):
    """That each does what it says is shown with FTML; here that none stops another learner or does nothing there."""
    ends = {}
    for name, plugin in {
        "none": None,
        "EWC": EWCPlugin(ewc_lambda=10.0),
        "SI": SynapticIntelligencePlugin(si_lambda=1e5),
        "MAS": MASPlugin(lambda_reg=1.0),
        "LwF": LwFPlugin(alpha=5.0),
        "RWalk": RWalkPlugin(ewc_lambda=1.0),
        "AGEM": AGEMPlugin(patterns_per_experience=10, sample_size=1),
        "MIR": MIRPlugin(batch_size_mem=2, mem_size=30, subsample=8),
        "CWR*": CWRStarPlugin,
        "from scratch": FromScratchTrainingPlugin(),
    }.items():
        net = nn.Sequential(model())
        plugin = plugin(net) if plugin is CWRStarPlugin else plugin
        strategy = cls(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            evaluator=None,
            train_mb_size=4,
            steps=3,
            plugins=[plugin] if plugin else [],
        )
        for experience in stream.train_stream:
            strategy.train(experience, eval_streams=[])
        ends[name] = flat(values(net))
        assert ends[name].isfinite().all()
    unchanged = {name for name in ends if name != "none" and torch.equal(ends[name], ends["none"])}
    # which projects only gradients that would do harm; and what FromScratch does by itself
    assert unchanged <= ({"AGEM", "from scratch"} if cls is FromScratch else {"AGEM"})


@pytest.mark.parametrize("cls", [MetaSGD, FTMLVS, FOML])
def test_compiled_models_are_refused_by_learners_that_keep_parameters_in_them(cls):
    net = torch.compile(model(), backend="eager")
    with pytest.raises(UsageError, match=f"{cls.__name__} keeps parameters of its own in the model, which a model of"):
        cls(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None)
    assert not any(name.startswith(("inner_rate", "fast_weight")) for name in net._orig_mod.state_dict())
