"""Learners as Avalanche strategies: FTML, the paper's baselines, and what has come after it.

They know nothing of leaderboards: any of them runs in a script with Avalanche alone, on any of its streams.
"""

from ftml_bench.strategies.anil import ANIL
from ftml_bench.strategies.avalanche.gradient_clip import GradientClip
from ftml_bench.strategies.avalanche.learning_rate import LearningRateAfter
from ftml_bench.strategies.avalanche.per_round import per_round
from ftml_bench.strategies.continual_maml import ContinualMAML
from ftml_bench.strategies.follow_the_leader import FollowTheLeader
from ftml_bench.strategies.foml import FOML
from ftml_bench.strategies.from_scratch import FromScratch
from ftml_bench.strategies.ftml import FTML
from ftml_bench.strategies.ftml_vs import FTMLVS
from ftml_bench.strategies.imaml import IMAML
from ftml_bench.strategies.maml_plus_plus import MAMLPlusPlus
from ftml_bench.strategies.meta_sgd import MetaSGD
from ftml_bench.strategies.mogd import MOGD
from ftml_bench.strategies.moml import MOML
from ftml_bench.strategies.reptile import Reptile
from ftml_bench.strategies.task_averages import TaskAverages
from ftml_bench.strategies.train_on_everything import TrainOnEverything

__all__ = [
    "ANIL",
    "FOML",
    "FTML",
    "FTMLVS",
    "IMAML",
    "MOGD",
    "MOML",
    "ContinualMAML",
    "FollowTheLeader",
    "FromScratch",
    "GradientClip",
    "LearningRateAfter",
    "MAMLPlusPlus",
    "MetaSGD",
    "Reptile",
    "TaskAverages",
    "TrainOnEverything",
    "per_round",
]
