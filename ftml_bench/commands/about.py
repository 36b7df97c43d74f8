"""What `ftml-bench list` says of the leaderboards that come with the package, beside their descriptions."""

from __future__ import annotations

from typing import NamedTuple

_NONE = "no data"
_MNIST = "MNIST"
_CIFAR = "CIFAR-100"
_DAYS = "not measured (days)"


HOURS = (
    "Core-hours: seconds of the committed cells, of the seeds in the definition; they ran beside other work, and a "
    "core that does nothing else may need half of it."
)


class About(NamedTuple):
    """What it costs, needs and answers.

    :param hours: the seconds that the committed cells took, of the definition's own seeds (`--seeds` may have made
        more), as hours; 0.1 is the least that is said. A cell has one thread, so that a core which does nothing else
        is as fast or faster: many of them ran beside other work. Or that there are none.
    """

    hours: str
    data: str
    question: str


LEADERBOARDS = {
    "ablations/arrival_size": About("0.1", _NONE, "does it matter by how many points data arrive?"),
    "ablations/baselines": About("0.4", _MNIST, "do two choices in the baselines decide how they compare?"),
    "ablations/inner_rate": About("0.1", _NONE, "how much does the inner learning rate decide?"),
    "ablations/inner_steps": About("0.1", _NONE, "how many inner steps, in training and at evaluation?"),
    "ablations/label_smoothing": About("0.1", _NONE, "does smoothing the labels help?"),
    "ablations/meta_batch": About("0.1", _NONE, "how many tasks does a meta-step take?"),
    "ablations/meta_steps": About("0.1", _NONE, "how many meta-steps does an arrival take?"),
    "ablations/second_order": About("0.1", _NONE, "what do second derivatives buy?"),
    "ablations/set_sizes": About("0.1", _NONE, "how many points do support and query sets take?"),
    "ablations/task_order": About("0.1", _NONE, "how much do the draw of the tasks and their order decide?"),
    "avalanche": About("0.5", _NONE, "do Avalanche's own strategies learn new tasks faster and faster?"),
    "batch_norm": About("0.7", _MNIST, "how much of FTML's lead over each baseline is the normalisation's?"),
    "cifar100": About(_DAYS, _CIFAR, "does a new class a round cost fewer and fewer images? (the paper's Figure 4)"),
    "cifar100_cpu": About("5.7", f"{_CIFAR} or its strips", "the same as cifar100, with few steps"),
    "cifar100_cpu_fifth": About(
        "4.0", f"{_CIFAR} or its strips", "does FTML learn to learn with a fifth of the steps of cifar100_cpu?"
    ),
    "cifar100_small": About("0.8", f"{_CIFAR} or its strips", "the same as cifar100, in small"),
    "colored": About("0.1", _NONE, "is the colour taken for the label?"),
    "colored_mnist": About("0.3", _MNIST, "the same as colored, on MNIST"),
    "descendants": About("1.1", _MNIST, "what of FTML's descendants is worth its memory and its gradients?"),
    "hidden_boundaries": About("0.5", _MNIST, "who learns fast where nobody says when a task ends?"),
    "pose": About(_DAYS, "CAD models", "is the pose of a new object learned from fewer and fewer images?"),
    "pose_cpu": About("7.0", "CAD models", "the same as pose, with few steps"),
    "pose_cpu_mujoco": About(
        "8.2", "CAD models, MuJoCo", "does the order of learners in pose_cpu depend on the renderer?"
    ),
    "pose_small": About("1.0", _NONE, "the same as pose, on made-up solids"),
    "quick": About("0.1", _NONE, "does FTML learn new tasks faster and faster, and its baselines not?"),
    "rainbow_mnist": About(_DAYS, _MNIST, "the paper's Figure 3: do later rounds need fewer images?"),
    "rainbow_mnist_authors": About("3.9", _MNIST, "does the protocol of the authors' code rank learners otherwise?"),
    "rainbow_mnist_cpu": About("8.3", _MNIST, "the same as rainbow_mnist, with a fifth of the images a step"),
    "rainbow_mnist_cpu_fourfold": About(
        "2.8", _MNIST, "do four times the steps of rainbow_mnist_cpu bring FTML to the front?"
    ),
    "rainbow_mnist_cpu_quarter": About(
        "1.5", _MNIST, "what of rainbow_mnist_cpu still holds with a quarter of its steps?"
    ),
    "rainbow_mnist_small": About("1.5", _MNIST, "the same as rainbow_mnist, in small"),
    "regret": About("0.4", _NONE, "does the regret against the best meta-learner in hindsight grow only slowly?"),
}
