"""What makes registered things small enough to be checked in seconds."""

META = {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "inner_steps": 2, "update_steps": 2}

SMALL = {  # what makes it small, and what it needs
    "FTML": META,
    "ANIL": META,
    "MetaSGD": META,
    "ContinualMAML": {**META, "gamma": 0.01},
    "FOML": META,
    "IMAML": {**META, "cg_steps": 2},
    "MOGD": META,
    "MOML": {**META, "window": 2},
    "TaskAverages": {"inner_steps": 2, "update_steps": 2},
    "FTMLVS": META,
    "MAMLPlusPlus": {**META, "multi_loss_steps": 9, "first_order_steps": 3},
    "Reptile": {"meta_batch_size": 2, "support_size": 4, "inner_steps": 2, "update_steps": 2},
    "FollowTheLeader": {"update_steps": 2},
    "RainbowMNIST": {"images_per_round": 10, "held_out_per_round": 10},
    "RainbowDigits": {"images_per_round": 30, "held_out_per_round": 30},
    "FiveWayCIFAR100": {"images_per_class": 4, "held_out_per_class": 4, "subset": True},
    "ColoredMNIST": {"images_per_round": 20, "held_out_per_round": 10},
    "ColoredDigits": {"images_per_round": 30},
    "ObjectPose": {"images_per_round": 20, "held_out_per_round": 10},
    "HiddenBoundaries": {"of": "Sinusoids"},
    "RainbowNet": {"image_size": 14, "layers": 3, "filters": 4},
    "MultiHeadNet": {"image_size": 14, "layers": 3, "filters": 4, "classes": 10, "heads": 2},
    "PoseNet": {"filters": 4, "hidden": 10},
}

TRIED_ON = {
    "PoseNet": {"benchmark": "ObjectPose", "benchmark_settings": {"images_per_round": 20, "held_out_per_round": 10}},
    "SinusoidMLP": {"benchmark": "Sinusoids"},
    # descendants of FTML on models of seconds; those with rates of every weight diverge on sinusoids by plain SGD
    **{
        name: {"benchmark": "Sinusoids"}
        for name in ("ANIL", "ContinualMAML", "FOML", "FTMLVS", "IMAML", "MOGD", "MOML", "Reptile", "TaskAverages")
    },
    "MAMLPlusPlus": {"benchmark": "LinearRegression"},
}


def broken(outcomes):
    return [str(outcome) for outcome in outcomes if outcome.verdict == "broken"]
