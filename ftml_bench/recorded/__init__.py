"""How training steps run faster on a GPU, never what they are: CUDA graphs, draws on the device, seeds together.

Nothing here knows a learner or an engine by name; `training_step.Recordable` is what a learner says of itself.
"""
