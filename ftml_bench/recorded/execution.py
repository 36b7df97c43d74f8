"""How the training steps of an arrival are taken: one call, whatever takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.together import Together
from ftml_bench.recorded.training_step import RecordedStep


class Execution:
    """Takes a learner's steps by Avalanche's loop, by replays of one recorded step, or together with other seeds.

    The steps are the same; a recorded one, on a GPU, draws from other random numbers.

    :param learner: a `Recordable`.
    :param draws: what draws its minibatches on the device; None: Avalanche's loop takes every step.
    """

    def __init__(self, learner: Any, draws: DeviceDraws | None = None) -> None:
        self.draws = draws
        self.draws_on_device = False  # found out at each arrival
        self.together: Together | None = None  # with whom steps are taken
        self.recorded = RecordedStep([learner])
        self._learner = learner

    @property
    def notes(self) -> list[str]:
        """For a record: what was not recorded or not taken together, and why; or with how many seeds."""
        together = "" if self.together is None else self.together.note
        return [note for note in (self.recorded.note, together) if note]

    def prepare(self, weights: Callable[[], Mapping[int, float] | None]) -> None:
        """See at the start of an arrival whether the device can draw now.

        :param weights: how often each round is drawn, up to a factor; None if it cannot be drawn so.
        """
        self.draws_on_device = False
        if self.draws is not None:
            given = weights()
            self.draws_on_device = bool(given) and self.draws.take_in(dict(given or {}))

    def take(self, steps: int, loop: Callable[[], None]) -> None:
        """Take the steps of an epoch.

        :param loop: Avalanche's, over as many steps.
        """
        if not self.draws_on_device or self._learner._stop_training or not self.recorded.possible():
            loop()
        elif self.together is not None and self.together.may_take(self._learner):
            self.together.note_steps(self._learner, steps)
        else:
            self.take_alone(steps)

    def take_alone(self, steps: int) -> None:
        """Take steps at once, where nothing acts inside them: of nobody but this learner (see `Together`)."""
        self.recorded.train(steps)

    def forget(self) -> None:
        """Let go of what was recorded; it is recorded anew."""
        self.recorded.forget()
