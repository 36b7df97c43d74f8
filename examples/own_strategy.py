"""A strategy of your own: what is the good of a meta-gradient? Fine-tune across rounds, and adapt as FTML does."""

import torch
from torch import Tensor, nn

from ftml_bench import protocol
from ftml_bench.adaptation import update_procedure
from ftml_bench.benchmarks import Sinusoids
from ftml_bench.strategies import FTML
from ftml_bench.strategies.joint import JointLearner


class FineTune(JointLearner):
    """Trains on the current round only, going on from where the round before ended; is evaluated adapted to D_t.

    :param inner_lr: step size of the update procedure.
    :param update_steps: its steps.
    """

    def __init__(self, *, inner_lr: float, update_steps: int, steps=None, seed=0, update_size=1000, **avalanche):
        super().__init__(steps=steps, seed=seed, update_size=update_size, batch_norm="support", **avalanche)
        self.inner_lr = inner_lr
        self.update_steps = update_steps

    def _rounds(self) -> list[int]:
        """The rounds that training draws from."""
        return [self.current_round]

    def _update(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Adapts `model`, the copy that is evaluated, to the data of its task."""
        parameters = dict(self.model.named_parameters())
        tuned = update_procedure(
            self.model,  # not the copy: a criterion may look at its weights
            parameters,
            self._criterion,
            x,
            y,
            steps=self.update_steps,
            optimizer=lambda some: torch.optim.SGD(some, lr=self.inner_lr),
            adapted=list(parameters),
        )
        model.load_state_dict(tuned, strict=False)
        self.cost.gradient_evaluations += self.update_steps * len(x)


if __name__ == "__main__":
    benchmark = Sinusoids(rounds=15)
    for learner in (FineTune, FTML):
        torch.manual_seed(0)
        model = benchmark.model()
        strategy = learner(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
            criterion=benchmark.criterion,
            inner_lr=benchmark.inner_lr,
            update_steps=benchmark.update_steps,
            train_mb_size=200,
            steps=20,
            eval_mb_size=100,
            evaluator=None,
        )
        found = protocol.run(strategy, benchmark)
        losses = [e.loss for e in found if e.datapoints == 8]
        late = losses[len(losses) // 2 :]
        print(f"{learner.__name__}: loss {sum(late) / len(late):.2f} after 8 datapoints, second half of the rounds")
