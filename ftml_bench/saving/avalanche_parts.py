"""What changes in the objects of Avalanche's that can be saved."""

from __future__ import annotations

from avalanche.evaluation import metrics
from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer
from avalanche.evaluation.metrics.loss import LossMetric
from avalanche.training import plugins
from avalanche.training.plugins.clock import Clock
from avalanche.training.regularization import LearningWithoutForgetting
from avalanche.training.templates.base_sgd import PeriodicEval

_FORGETTING = ("forgetting", "_current_metric", "eval_exp_id", "train_exp_id")
_TRANSFER = ("forward_transfer", "_current_metric", "eval_exp_id", "train_exp_id", "at_init")

# What changes in Avalanche's own (0.6.0). Classes by their exact type: another version's subclass is not trusted.
AVALANCHE: dict[type, tuple[str, ...]] = {
    plugins.EWCPlugin: ("saved_params", "importances"),
    plugins.LwFPlugin: ("lwf",),
    LearningWithoutForgetting: ("prev_model", "expcount", "prev_classes_by_task"),
    plugins.SynapticIntelligencePlugin: ("ewc_data", "syn_data"),
    plugins.MASPlugin: ("params", "importance"),
    plugins.RWalkPlugin: (
        *("checkpoint_params", "checkpoint_loss", "checkpoint_scores", "iter_grad", "iter_importance", "iter_params"),
        *("exp_scores", "exp_params", "exp_importance", "exp_penalties"),
    ),
    plugins.GEMPlugin: ("memory_x", "memory_y", "memory_tid", "G"),
    plugins.LRSchedulerPlugin: (
        "scheduler",
        "rolling_metric",
        "_was_training",
        "_just_validated",
        "_executed_train_iteration",
    ),
    plugins.EarlyStoppingPlugin: ("best_state", "best_val", "best_step"),
    plugins.EvaluationPlugin: ("metrics", "all_metric_results", "last_metric_results", "_active"),
    Clock: (
        "train_iterations",
        "train_exp_counter",
        "train_exp_epochs",
        "train_exp_iterations",
        "train_epoch_iterations",
        "total_iterations",
    ),
    PeriodicEval: ("do_final", "_is_eval_updated"),
    **dict.fromkeys(
        [
            metrics.MinibatchAccuracy,
            metrics.EpochAccuracy,
            metrics.RunningEpochAccuracy,
            metrics.ExperienceAccuracy,
            metrics.StreamAccuracy,
            metrics.MinibatchLoss,
            metrics.EpochLoss,
            metrics.RunningEpochLoss,
            metrics.ExperienceLoss,
            metrics.StreamLoss,
        ],
        ("_metric",),
    ),
    metrics.TrainedExperienceAccuracy: ("_metric", "_current_experience"),
    **dict.fromkeys([metrics.ExperienceForgetting, metrics.ExperienceBWT], _FORGETTING),
    **dict.fromkeys([metrics.StreamForgetting, metrics.StreamBWT], (*_FORGETTING, "stream_forgetting")),
    metrics.ExperienceForwardTransfer: _TRANSFER,
    metrics.StreamForwardTransfer: (*_TRANSFER, "stream_forward_transfer"),
    metrics.Accuracy: ("_mean_accuracy",),
    metrics.TaskAwareAccuracy: ("_mean_accuracy",),
    LossMetric: ("_mean_loss",),
    metrics.Mean: ("summed", "weight"),
    Forgetting: ("initial", "last"),
    BWT: ("initial", "last"),
    ForwardTransfer: ("initial", "previous"),
}
