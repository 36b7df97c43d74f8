"""Plain copies of a model, adapted by plain gradient descent: what engines are compared with."""

import torch
from torch import nn

from ftml_bench.models.copies import copy_of

INNER = {"inner_lr": 0.1, "inner_steps": 2}


def data(tasks=3, support=5, query=4, shape=(3,), classes=2):
    torch.manual_seed(0)
    x = torch.randn(tasks, support + query, *shape, dtype=torch.float64)
    y = torch.randint(classes, (tasks, support))
    return (x[:, :support], y), x[:, support:]


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def plain(model, support, query, criterion=nn.functional.cross_entropy, steps=2, lr=0.1, clip=None, moved=None, h=0.0):
    """Plain copies, plain gradient descent; with a direction, at weights moved by h along it."""
    outputs = []
    for x, y, q in zip(*support, query, strict=True):
        copy = copy_of(model)
        with torch.no_grad():
            for p, d in zip(copy.parameters(), moved or [], strict=False):
                p.add_(d, alpha=h)
        trained = [p for p in copy.parameters() if p.requires_grad]
        for _ in range(steps):
            gradients = torch.autograd.grad(criterion(copy(x), y), trained, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for p, g in zip(trained, gradients, strict=True):
                    p -= lr * (g if clip is None else g.clip(-clip, clip))
        outputs.append(copy(q).detach())
    return torch.stack(outputs)


def predict(engine, model, support, query):
    return engine.predict(dict(model.named_parameters()), support, query)
