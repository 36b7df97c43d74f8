"""Saving a strategy of ours and going on with it, bit by bit as if it had not been stopped (on a CPU).

::

    stream = [arrival for round in benchmark.train_stream for arrival in arrivals(round, 100)]
    done = load(strategy, "state.pt", stream)     # the strategy built as before
    for arrival in stream[done:]:
        strategy.train(arrival)
        save(strategy, "state.pt")

A saved state holds the model, the criterion, the optimiser, every generator that training draws from, the cost, the
clock, and the plugins and metrics (see `ftml_bench.saving.plain_state`), as tensors and plain values:
`torch.load(..., weights_only=True)` reads it. It holds no data: those come again from the stream, and are compared with
what was trained on. Of loggers only where a `CSVLogger` was in its file is saved: nothing reads from them.
"""

from ftml_bench.saving.strategies import load, load_file, load_state_dict, save, state_dict

__all__ = ["load", "load_file", "load_state_dict", "save", "state_dict"]
