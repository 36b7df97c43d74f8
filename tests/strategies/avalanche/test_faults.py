"""What is broken in Avalanche itself; where one of these fails, a repair may go."""

import pytest
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import (
    AGEMPlugin,
    FeatureDistillationPlugin,
    GEMPlugin,
    LFLPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)

from tests.strategies.avalanche.small import Half, feature_model, long_gradients, mlp, naive, train


def test_avalanches_si_still_does_nothing_on_a_cpu(stream):
    plugin = SynapticIntelligencePlugin(si_lambda=1e4)
    strategy = naive(plugin)
    train(strategy, stream)
    assert all(not importance.data.any() for importance in plugin.ewc_data[1].values())


def test_avalanches_rwalk_still_divides_by_zero_and_leaves_the_mode(stream):
    half = Half()
    plugin = RWalkPlugin(delta_t=10)
    strategy = naive(plugin)
    strategy.plugins.insert(1, half)
    strategy.train(stream.train_stream[0], eval_streams=[])
    assert not any(half.modes)
    assert any(penalty.data.isnan().any() for penalty in plugin.exp_penalties.values())


def test_avalanches_rwalk_still_stops_where_the_model_has_grown(tasks):
    with pytest.raises(KeyError, match="classifiers"):
        train(naive(RWalkPlugin(), MTSimpleMLP(input_size=5, hidden_size=4)), tasks)


def test_avalanches_lfl_still_leaves_the_mode(stream):
    strategy = naive(LFLPlugin(1.0), mlp())
    strategy.plugins.append(look := Half())
    look.after_backward = look.after_update = look.before_training_iteration = lambda strategy, **kwargs: None
    look.before_backward = lambda strategy, **kwargs: look.modes.append(strategy.model.training)
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    assert not look.modes[-1]


def test_avalanches_feature_distillation_still_stops_with_mse(stream):
    with pytest.raises(TypeError, match="dim"):
        train(naive(FeatureDistillationPlugin(mode="mse"), feature_model()), stream)


@pytest.mark.filterwarnings("ignore")
def test_avalanches_gem_still_stops_at_long_gradients():
    plugin = GEMPlugin(patterns_per_experience=12, memory_strength=0.5)
    plugin.G, g = long_gradients()
    with pytest.raises(TypeError, match="NoneType"):
        plugin.solve_quadprog(g)


def test_avalanches_agem_still_runs_out_of_its_sample(stream):
    strategy = naive(AGEMPlugin(patterns_per_experience=10, sample_size=1))
    with pytest.raises(ValueError, match="batch_size=0"):
        train(strategy, stream)


def test_avalanches_rwalk_still_asks_for_a_training_step(stream):
    with pytest.raises(AssertionError):
        naive(RWalkPlugin(), train_epochs=0).train(stream.train_stream[0], eval_streams=[])
