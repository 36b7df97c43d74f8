"""The paper's networks, and the norm layer that they share."""

from ftml_bench.models.multi_head import MultiHeadNet
from ftml_bench.models.norm import TaskBatchNorm, batch_statistics, convert_batch_norm
from ftml_bench.models.rainbow_net import RainbowNet
from ftml_bench.models.sinusoid_mlp import SinusoidMLP

__all__ = ["MultiHeadNet", "RainbowNet", "SinusoidMLP", "TaskBatchNorm", "batch_statistics", "convert_batch_norm"]
