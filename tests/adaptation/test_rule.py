"""Learned inner rates, an inner penalty and outputs after every step, in every engine against differences by hand."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import InnerRule, make_engine
from ftml_bench.errors import UsageError
from ftml_bench.models.norm import TaskBatchNorm

STEPS, T, S, Q = 3, 2, 5, 4
ENGINES = [
    ("higher", "auto"),
    ("loop", "unroll"),
    ("loop", "adjoint"),
    ("vmap", "adjoint"),
    ("batched", "unroll"),
    ("batched", "adjoint"),
]


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data():
    rng = torch.Generator().manual_seed(1)
    x, query = (torch.randn(T, n, 3, generator=rng, dtype=torch.float64) for n in (S, Q))
    y, target = (torch.randn(T, n, 2, generator=rng, dtype=torch.float64) for n in (S, Q))
    return x, y, query, target


def by_hand(model, parameters, x, y, query, rates, penalty, anchor, steps=STEPS):
    """Outputs after each step, by plain steps on tensors: the layers written out, their gradients in closed form."""
    outputs = []
    for task in range(len(x)):
        w1, b1, w2, b2 = (parameters[n].detach().clone() for n in ("0.weight", "0.bias", "2.weight", "2.bias"))
        after = []
        for step in range(steps):
            h = torch.tanh(x[task] @ w1.T + b1)
            error = 2 * (h @ w2.T + b2 - y[task]) / y[task].numel()
            inner = error @ w2 * (1 - h**2)
            g = [inner.T @ x[task], inner.sum(0), error.T @ h, error.sum(0)]
            old = [w1, b1, w2, b2]
            g = [a + penalty * (w - anchor[n]) for a, w, n in zip(g, old, parameters, strict=True)]
            w1, b1, w2, b2 = (w - rates(step, n) * a for w, a, n in zip(old, g, parameters, strict=True))
            after.append(torch.tanh(query[task] @ w1.T + b1) @ w2.T + b2)
        outputs.append(torch.stack(after))
    return torch.stack(outputs, dim=1)


def kinds(model):
    """Rates in every form, each with what gives the rate of a parameter in a step."""
    rng = torch.Generator().manual_seed(2)
    one = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    names = dict(model.named_parameters())
    numbers = {n: torch.tensor(0.1 + 0.1 * i, dtype=torch.float64, requires_grad=True) for i, n in enumerate(names)}
    each = {
        n: (0.2 + 0.1 * torch.rand(p.shape, generator=rng, dtype=torch.float64)).requires_grad_()
        for n, p in names.items()
    }
    return {
        "one number": (one, lambda step, n: one, [one]),
        "one a layer": (numbers, lambda step, n: numbers[n], list(numbers.values())),
        "one a parameter": (each, lambda step, n: each[n], list(each.values())),
        "one a step": ([one, numbers], lambda step, n: one if step == 0 else numbers[n], [one, *numbers.values()]),
    }


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("kind", ["one number", "one a layer", "one a parameter", "one a step"])
@pytest.mark.parametrize(("name", "memory"), ENGINES)
def test_learned_rates_and_a_penalty(name, memory, kind, second_order):
    model = model_of()
    x, y, query, target = data()
    rates, rate_of, leaves = kinds(model)[kind]
    parameters = dict(model.named_parameters())
    anchor = {n: (p.detach() + 0.1).requires_grad_() for n, p in parameters.items()}
    engine = make_engine(
        name, model, nn.MSELoss(), inner_lr=0.1, inner_steps=STEPS, memory=memory, second_order=second_order
    )
    rule = InnerRule(rates, penalty=0.5, anchor=anchor)
    outputs = engine.predict(parameters, (x, y), query, rule=rule, every_step=True)
    assert outputs.shape == (STEPS, T, Q, 2)
    assert torch.allclose(outputs, by_hand(model, parameters, x, y, query, rate_of, 0.5, anchor), atol=1e-12)
    last = engine.predict(parameters, (x, y), query, rule=rule)
    assert torch.allclose(last, outputs[-1], atol=1e-14)

    weights = torch.arange(1.0, STEPS + 1, dtype=torch.float64).view(-1, 1, 1, 1)  # a loss of every step
    wanted = [*leaves, *parameters.values(), *(anchor.values() if second_order else ())]
    found = torch.autograd.grad((weights * (outputs - target) ** 2).sum(), wanted)
    if not second_order:
        # inner gradients are constants: the last rate's derivative alone is that of plain differences
        return check_first_order(found[: len(leaves)], rate_of, leaves, model, parameters, x, y, query, target, anchor)

    def loss():
        by = by_hand(model, parameters, x, y, query, rate_of, 0.5, anchor)
        return float((weights * (by - target) ** 2).sum())

    for leaf, gradient in zip(wanted, found, strict=True):
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        with torch.no_grad():
            leaf += 1e-5 * direction
            above = loss()
            leaf -= 2e-5 * direction
            below = loss()
            leaf += 1e-5 * direction
        difference = (above - below) / 2e-5
        assert abs(float((gradient * direction).sum()) - difference) < 1e-6 * max(1, abs(difference))


def check_first_order(found, rate_of, leaves, model, parameters, x, y, query, target, anchor):
    """With gradients that are constants, outputs after k steps depend on a rate by -sum of gradients alone."""
    gradients = []  # of each step and task, by name, at the weights that the steps come to

    def by_constants(shift):
        outputs = []
        for task in range(T):
            w = {n: p.detach().clone() for n, p in parameters.items()}
            after = []
            for step in range(STEPS):
                for n in w:
                    w[n] = w[n] - rate_of(step, n) * gradients[task][step][n]
                after.append(torch.tanh(query[task] @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"])
            outputs.append(torch.stack(after))
        weights = torch.arange(1.0, STEPS + 1, dtype=torch.float64).view(-1, 1, 1, 1)
        return float((weights * (torch.stack(outputs, dim=1) - target) ** 2).sum())

    for task in range(T):
        w = {n: p.detach().clone() for n, p in parameters.items()}
        steps = []
        for step in range(STEPS):
            h = torch.tanh(x[task] @ w["0.weight"].T + w["0.bias"])
            error = 2 * (h @ w["2.weight"].T + w["2.bias"] - y[task]) / y[task].numel()
            inner = error @ w["2.weight"] * (1 - h**2)
            g = dict(zip(w, [inner.T @ x[task], inner.sum(0), error.T @ h, error.sum(0)], strict=True))
            steps.append({n: (g[n] + 0.5 * (w[n] - anchor[n])).detach() for n in w})
            w = {n: (w[n] - rate_of(step, n) * steps[-1][n]).detach() for n in w}
        gradients.append(steps)
    for leaf, gradient in zip(leaves, found, strict=True):
        direction = torch.ones_like(leaf)
        with torch.no_grad():
            leaf += 1e-5
            above = by_constants(0)
            leaf -= 2e-5
            below = by_constants(0)
            leaf += 1e-5
        difference = (above - below) / 2e-5
        assert abs(float((gradient * direction).sum()) - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.parametrize("name", ["higher", "loop", "vmap", "batched"])
def test_the_anchor_is_the_start_unless_one_is_given(name):
    model = model_of()
    x, y, query, _ = data()
    parameters = dict(model.named_parameters())
    engine = make_engine(name, model, nn.MSELoss(), inner_lr=0.1, inner_steps=STEPS)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    expected = by_hand(model, parameters, x, y, query, lambda step, n: 0.1, 2.0, start)[-1]
    found = engine.predict(parameters, (x, y), query, rule=InnerRule(penalty=2.0))
    assert torch.allclose(found, expected, atol=1e-12)


def test_the_update_procedure_follows_the_rule():
    model = model_of()
    x, y, query, _ = data()
    parameters = dict(model.named_parameters())
    rates, rate_of, _ = kinds(model)["one a step"]
    start = {n: p.detach().clone() for n, p in parameters.items()}
    engine = make_engine("auto", model, nn.MSELoss(), inner_lr=0.1, inner_steps=STEPS)
    adapted = engine.adapt(parameters, x[0], y[0], 5, rule=InnerRule(rates, penalty=0.5))
    outputs = torch.tanh(query[0] @ adapted["0.weight"].T + adapted["0.bias"]) @ adapted["2.weight"].T
    # the last of the rates goes on
    expected = by_hand(model, parameters, x[:1], y[:1], query[:1], rate_of, 0.5, start, steps=5)[-1, 0]
    assert torch.allclose(outputs + adapted["2.bias"], expected, atol=1e-12)


def test_norm_layers_and_subsets_keep_their_meaning():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), TaskBatchNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y, query, _ = data()
    rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    gradients = []
    for name, memory in ENGINES:
        engine = make_engine(
            name, model, nn.MSELoss(), inner_lr=9.0, inner_steps=2, memory=memory, adapted=["3.weight"]
        )
        outputs = engine.predict(dict(model.named_parameters()), (x, y), query, rule=InnerRule(rate))
        gradients.append(torch.autograd.grad(outputs.square().sum(), [rate, *model.parameters()]))
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (InnerRule(torch.ones(3)), "expected one number"),
        (InnerRule([]), "an empty sequence"),
        (InnerRule({"0.weight": torch.tensor(0.1)}), "no inner rate for parameter 0.bias"),
        (InnerRule(penalty=1.0, anchor={"0.weigth": torch.ones(1)}), "parameter of the anchor '0.weight'"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(rule, message):
    model = model_of()
    x, y, query, _ = data()
    engine = make_engine("auto", model, nn.MSELoss(), inner_lr=0.1, inner_steps=1)
    with pytest.raises(UsageError, match=message):
        engine.predict(dict(model.named_parameters()), (x, y), query, rule=rule)


def test_rates_of_another_shape_are_refused():
    model = model_of()
    x, y, query, _ = data()
    rates = {n: torch.ones(7) for n, _ in model.named_parameters()}
    engine = make_engine("auto", model, nn.MSELoss(), inner_lr=0.1, inner_steps=1)
    with pytest.raises(UsageError, match=r"has the shape \(7,\): expected one number, or the parameter's shape"):
        engine.predict(dict(model.named_parameters()), (x, y), query, rule=InnerRule(rates))


@pytest.mark.parametrize("name", ["loop", "vmap", "batched"])
def test_weights_that_ask_for_no_gradient_are_adapted_towards_an_anchor_that_does(name):
    """As fast weights are that are pulled towards slow ones."""
    model = model_of()
    x, y, query, target = data()
    fast = {n: p.detach().clone() for n, p in model.named_parameters()}
    anchor = {n: (p.detach() + 0.1).requires_grad_() for n, p in model.named_parameters()}
    engine = make_engine(name, model, nn.MSELoss(), inner_lr=0.1, inner_steps=STEPS)
    outputs = engine.predict(fast, (x, y), query, rule=InnerRule(penalty=0.5, anchor=anchor))
    assert engine.chosen["engine"] == name
    found = torch.autograd.grad(((outputs - target) ** 2).sum(), list(anchor.values()))

    def loss():
        return float(((by_hand(model, fast, x, y, query, lambda *_: 0.1, 0.5, anchor)[-1] - target) ** 2).sum())

    for leaf, gradient in zip(anchor.values(), found, strict=True):
        losses = []
        for length in (1e-5, -1e-5):
            with torch.no_grad():
                leaf += length
                losses.append(loss())
                leaf -= length
        difference = (losses[0] - losses[1]) / 2e-5
        assert abs(float(gradient.sum()) - difference) < 1e-6 * max(1, abs(difference))
