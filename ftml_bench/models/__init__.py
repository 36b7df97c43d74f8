"""The paper's networks, and the layers of their own that they need."""

from ftml_bench.models.multi_head import MultiHeadNet
from ftml_bench.models.norm import TaskBatchNorm, batch_statistics, convert_batch_norm
from ftml_bench.models.pose_net import BiasTransformation, PoseNet, SpatialSoftArgmax
from ftml_bench.models.rainbow_net import RainbowNet
from ftml_bench.models.sinusoid_mlp import SinusoidMLP

__all__ = [
    "BiasTransformation",
    "MultiHeadNet",
    "PoseNet",
    "RainbowNet",
    "SinusoidMLP",
    "SpatialSoftArgmax",
    "TaskBatchNorm",
    "batch_statistics",
    "convert_batch_norm",
]
