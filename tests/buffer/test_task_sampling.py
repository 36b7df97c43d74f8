"""Weights of rounds, and what it takes to find them."""

import torch

from ftml_bench.buffer.task_sampling import weights_of


class Number(int):
    """Counts with how many others it is compared."""

    compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other):
        Number.compared += 1
        return int(self) == int(other)


def test_weights_are_those_of_the_rounds_by_their_arrival():
    found = weights_of([7, 2], known=[2, 5, 7], sampler=lambda t: torch.arange(1.0, t + 1))
    assert found.tolist() == [3, 1]


def test_what_it_takes_to_find_them_grows_with_the_rounds_not_with_their_square():
    known = [Number(n) for n in range(300)]
    Number.compared = 0
    assert weights_of(list(reversed(known)), known, lambda t: torch.arange(1.0, t + 1)).tolist() == list(
        range(300, 0, -1)
    )
    assert Number.compared <= 600
