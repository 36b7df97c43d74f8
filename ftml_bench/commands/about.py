"""What `ftml-bench list` says of the leaderboards that come with the package, beside their descriptions."""

from __future__ import annotations

from typing import NamedTuple

_NONE = "no data"
_MNIST = "MNIST"
_CIFAR = "CIFAR-100"
_UNMEASURED = "days, not measured"


class About(NamedTuple):
    """What it costs, needs and answers.

    :param hours: core-hours of all cells: the seconds that the committed results name, or that there are none.
    """

    hours: str
    data: str
    question: str


LEADERBOARDS = {
    "ablations/baselines": About("1, reckoned", _MNIST, "do two choices in the baselines decide how they compare?"),
    "avalanche": About("0.3", _NONE, "do Avalanche's own strategies learn new tasks faster and faster?"),
    "cifar100": About(
        _UNMEASURED, _CIFAR, "does a new class a round cost fewer and fewer images? (the paper's Figure 4)"
    ),
    "cifar100_small": About("0.4", f"{_CIFAR} or its strips", "the same as cifar100, in small"),
    "colored": About("0.3", _NONE, "is the colour taken for the label?"),
    "colored_mnist": About("0.3", _MNIST, "the same as colored, on MNIST"),
    "descendants": About(
        "hours, not measured", _MNIST, "what of FTML's descendants is worth its memory and its gradients?"
    ),
    "hidden_boundaries": About("hours, not measured", _MNIST, "who learns fast where nobody says when a task ends?"),
    "pose": About(_UNMEASURED, "CAD models", "is the pose of a new object learned from fewer and fewer images?"),
    "pose_small": About("2.0", _NONE, "the same as pose, on made-up solids"),
    "quick": About("0.1", _NONE, "does FTML learn new tasks faster and faster, and its baselines not?"),
    "rainbow_mnist": About(_UNMEASURED, _MNIST, "the paper's Figure 3: do later rounds need fewer images?"),
    "rainbow_mnist_cpu": About(
        "hours, not measured", _MNIST, "the same as rainbow_mnist, with a fifth of the images a step and in a round"
    ),
    "rainbow_mnist_small": About("0.7", _MNIST, "the same as rainbow_mnist, in small"),
    "regret": About("0.3", _NONE, "does the regret against the best meta-learner in hindsight grow only slowly?"),
}
