"""Feature distillation, LFL and LwF with FTML: what they pull towards the old model, by hand."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin, FeatureDistillationPlugin, LFLPlugin, LwFPlugin
from torch import nn

from ftml_bench.strategies import FTML
from tests.strategies.avalanche.small import LEARNERS, Around, feature_model, ftml, train


@pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
def test_feature_distillation_pulls_the_models_features_to_the_old_ones(cls, stream):
    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            looked.append((strategy.mb_x, copy.deepcopy(strategy.model.state_dict())))

    looked, around, net = [], Around(), feature_model()
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.3),
        train_mb_size=4,
        steps=4,
        evaluator=EvaluationPlugin(),
        plugins=around.of(Look(), FeatureDistillationPlugin(alpha=0.8)),
        **({"meta_batch_size": 2, "support_size": 3, "query_size": 3} if cls is FTML else {}),
    )
    old = []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        strategy.eval(stream.test_stream)
        old.append(copy.deepcopy(net.feature_extractor))
    x, now = looked[-1]
    assert len(x) == (6 if cls is FTML else 4)
    net.load_state_dict(now)
    penalty = 0.8 * (1 - torch.cosine_similarity(net.feature_extractor(x), old[1](x).detach(), dim=1).mean())
    expected = torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True)
    assert around.after.losses[-1] - around.before.losses[-1] == pytest.approx(float(penalty), rel=1e-3)
    assert float(penalty) > 1e-4
    for own, meta, g in zip(around.after.gradients[-1], around.before.meta_gradients[-1], expected, strict=True):
        assert torch.allclose(own - meta, torch.zeros_like(own) if g is None else g, atol=1e-5, rtol=1e-3)


def test_lfl_pulls_the_models_features_to_the_old_ones_and_leaves_it_in_training_mode(stream):
    torch.manual_seed(0)
    net, around, kept = SimpleMLP(num_classes=6, input_size=5, hidden_size=4, drop_rate=0), Around(), []
    strategy = ftml(*around.of(LFLPlugin(lambda_e=0.6)), net=net)
    looked = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            looked.append((strategy.mb_x, copy.deepcopy(strategy.model)))

    strategy.plugins.insert(0, Look())
    # a layer that is frozen has no gradient: only what the loss becomes is compared
    around.before.before_backward = lambda strategy, **kw: around.before.losses.append(strategy.loss.item())
    around.after.before_backward = lambda strategy, **kw: (
        around.after.losses.append(strategy.loss.item()),
        around.after.modes.append(strategy.model.training),
    )
    for half in (around.before, around.after):
        half.after_backward = half.after_update = lambda strategy, **kw: None
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
        kept.append(copy.deepcopy(net))
    x, now = looked[-1]
    expected = 0.6 * nn.functional.mse_loss(now.get_features(x), kept[0].get_features(x))
    assert around.after.losses[-1] - around.before.losses[-1] == pytest.approx(float(expected), rel=1e-3)
    assert float(expected) > 1e-6
    assert all(around.after.modes)


def test_lwf_distils_the_old_model_into_the_adapted_outputs(stream):
    around = Around()
    looked = {}

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            looked["x"], looked["out"] = strategy.mb_x, strategy.mb_output

    strategy = ftml(*around.of(Look(), LwFPlugin(alpha=0.8, temperature=2)))
    kept = train(strategy, stream, lambda: copy.deepcopy(strategy.model))
    with torch.no_grad():
        q = torch.softmax(kept[1](looked["x"])[:, :4] / 2, dim=1)  # four classes were there before
        log_p = torch.log_softmax(looked["out"][:, :4] / 2, dim=1)
        expected = (q * (q.log() - log_p)).sum() / len(q)
    added = around.after.losses[-1] - around.before.losses[-1]
    assert added == pytest.approx(0.8 * float(expected), rel=1e-3)
    assert added > 1e-4
    # and the outputs are the adapted ones: the penalty depends on the meta-parameters through the inner loop
    different = [
        (own - meta).abs().max()
        for own, meta in zip(around.after.gradients[-1], around.before.meta_gradients[-1], strict=True)
    ]
    assert max(different) > 1e-4
