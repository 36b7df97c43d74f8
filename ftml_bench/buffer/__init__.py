"""What a learner remembers: the task buffer, what bounds it, and where its points lie."""

from ftml_bench.buffer.round import Batch, Round
from ftml_bench.buffer.rules import RULES, FirstInFirstOut, LastRounds, Reservoir, Rule, ShareOfClasses
from ftml_bench.buffer.task_buffer import TaskBuffer

__all__ = [
    "RULES",
    "Batch",
    "FirstInFirstOut",
    "LastRounds",
    "Reservoir",
    "Round",
    "Rule",
    "ShareOfClasses",
    "TaskBuffer",
]
