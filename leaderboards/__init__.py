"""Leaderboard definitions (`*.yaml`), read by `ftml_bench.definition`; results that were run are under `results/`."""
