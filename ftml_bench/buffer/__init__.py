"""What a learner remembers: the task buffer, and where its points lie."""

from ftml_bench.buffer.task_buffer import Batch, Round, TaskBuffer

__all__ = ["Batch", "Round", "TaskBuffer"]
