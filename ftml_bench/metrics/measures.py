"""What can be measured round by round beside loss and accuracy: names, titles, and how a curve is to be read.

Pure Python: definitions are checked against it and reports use it. `ftml_bench.metrics.measure_metrics` makes the
plugin metrics of a name; what they emit is recorded in a run's `measures.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A curve over rounds.

    :param title: for tables and figures.
    :param so_far: "sum" or "mean" where a round's value is that over all rounds so far, else empty.
    :param note: a sentence that says what it is.
    """

    title: str
    so_far: str
    note: str


REGRET = "Regret"
LOSS_OF_ROUND = "Loss_Of_Round"
ONLY_CLASS = "Called_The_Only_Class"
REGRET_OVER_SHOTS = "Regret_Over_Shots"
CURRENT_TASK = "Current_Task_Metric"
LONG_TERM = "Long_Term_Metric"
ONLINE = "Online_Performance"

# name of a measure -> the curves that it emits
MEASURES: dict[str, dict[str, Measured]] = {
    "regret": {
        REGRET: Measured(
            "regret",
            "sum",
            "Regret (equation 3): the summed losses of the rounds so far, less those of the best meta-learner in "
            "hindsight.",
        ),
        LOSS_OF_ROUND: Measured(
            "loss of the round",
            "",
            "Loss of the round: f_t(U_t(w_t)), with w_t as it was before any data of round t entered a training step.",
        ),
    },
    "only_class": {
        ONLY_CLASS: Measured(
            "called the only class",
            "",
            "Called the only class: the share of a round's held-out data that is called the only class that has "
            "arrived, after the round's first arrival. Without errors it is that class's own share.",
        ),
    },
    "shots": {
        REGRET_OVER_SHOTS: Measured(
            "regret over shots",
            "sum",
            "Regret over shots: the losses on held-out data after every arrival, summed over all arrivals of all "
            "rounds so far.",
        ),
    },
    "online": {
        ONLINE: Measured(
            "online performance",
            "mean",
            "Online performance: the accuracy (of regression the loss) in all evaluations so far, the mean.",
        ),
    },
    "terms": {
        CURRENT_TASK: Measured(
            "current task metric",
            "mean",
            "Current task metric: the accuracy (of regression the loss) on each round's held-out data at its end, the "
            "mean over the rounds so far.",
        ),
        LONG_TERM: Measured(
            "long term metric",
            "mean",
            "Long term metric: the same on all rounds so far by the model as it is now, adapted to each round's data, "
            "after the 1st, 2nd, 4th, 8th, ... round.",
        ),
    },
}

CURVES: dict[str, Measured] = {name: curve for curves in MEASURES.values() for name, curve in curves.items()}
