"""Names under which metrics emit."""

from __future__ import annotations

TO_THRESHOLD = "Datapoints_To_Threshold/eval_phase/test_stream"
CENSORED = "Threshold_Censored/eval_phase/test_stream"


def curve_tag(metric):
    return f"{metric.capitalize()}_Over_Datapoints/eval_phase/test_stream"


def final_tag(metric):
    return f"Final_{metric.capitalize()}/eval_phase/test_stream"


def checkpoint_tag(metric, n):
    return f"{metric.capitalize()}_At_{n}_Datapoints/eval_phase/test_stream"
