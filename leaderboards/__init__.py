"""Leaderboard definitions (`*.yaml`), read by `ftml_bench.runs.definition`; what was run is under `results/`."""
