"""Forward passes of a model without inner steps, by compiled kernels where they are exact for it."""

from __future__ import annotations

from torch import Tensor, nn

from ftml_bench.adaptation.auto import TriedEngine
from ftml_bench.adaptation.engine import Parameters
from ftml_bench.adaptation.native import NativeEngine
from ftml_bench.errors import UsageError
from ftml_bench.models.norm import keep_running


class PlainPass:
    """Outputs of a model for groups of rows, each normalised by itself, by the engine `native`.

    It is tried as an engine is (see `trial`), and what changes in the model is noticed.

    :param model: whose `nn.BatchNorm` layers have been converted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._engine: TriedEngine | None = None
        self._is_left = False  # since it has turned out not to be exact

    def __call__(
        self, x: Tensor, *, groups: int = 1, parameters: Parameters | None = None, keeps_running: bool = False
    ) -> Tensor | None:
        """The outputs for x (N, *input), (N, *output), differentiable in the parameters; None: not to be had this way.

        :param groups: x consists of so many equal groups of consecutive rows.
        :param parameters: by name; None: the model's own.
        :param keeps_running: whether the running statistics follow, averaged over groups (see `batch_statistics`).
        """
        if self._is_left:
            return None
        try:
            if self._engine is None:
                self._engine = TriedEngine([NativeEngine], self._model, _no_loss, _SETTINGS)
            own = dict(self._model.named_parameters()) if parameters is None else parameters
            outputs = self._engine.outputs(own, x.unflatten(0, (groups, -1)))
        except UsageError:
            self._is_left = True
            return None
        if keeps_running:
            keep_running(self._model, self._engine.moments)
        return outputs.flatten(0, 1)


_SETTINGS = {"inner_lr": 1.0, "inner_steps": 0, "batch_norm": "transductive"}


def _no_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return 0 * outputs.sum()
