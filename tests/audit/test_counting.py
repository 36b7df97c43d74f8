"""Operators, tensors and bytes, counted by hand."""

import torch

from .counting import Operators


def test_operators_are_counted():
    a, b = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.float64)
    with Operators() as operators:
        c = a * b  # 3 * 4 * 8 bytes
        c.add_(1).view(12)[2:]  # in place, and two views of it
        c.sum()
    assert (operators.calls, operators.tensors, operators.bytes) == (5, 2, 96 + 8)


def test_what_a_backward_pass_does_is_counted():
    x = torch.ones(5, requires_grad=True)
    loss = (x * x).sum()
    with Operators() as operators:
        loss.backward()
    # ones like the loss; twice its product with x; their sum
    assert (operators.tensors, operators.bytes) == (4, 4 + 3 * 20)
    assert operators.calls > 4  # views beside


def test_all_tasks_of_a_vmap_count_as_one_call():
    x = torch.ones(7, 2)
    with Operators() as operators:
        torch.func.vmap(torch.sin)(x)
    assert (operators.calls, operators.tensors, operators.bytes) == (1, 1, 7 * 2 * 4)
