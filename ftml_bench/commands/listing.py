"""`ftml-bench list`."""

from __future__ import annotations

import argparse

from ftml_bench.commands.about import HOURS, LEADERBOARDS


def list_names(options: argparse.Namespace) -> int:
    from ftml_bench import registry
    from ftml_bench.runs import definition

    groups = {"leaderboards": definition.available()}
    for title, kind in (("benchmarks", "benchmark"), ("strategies", "strategy"), ("models", "model")):
        groups[title] = {name: entry.summary for name, entry in registry.entries(kind).items()}
    width = max(len(name) for names in groups.values() for name in names)
    for title, names in groups.items():
        print(f"{title}:")
        for name, summary in names.items():
            print(f"  {name:<{width}}  {summary}")
            if title == "leaderboards":
                about = LEADERBOARDS[name]
                print(f"  {'':<{width}}  core-hours: {about.hours}; needs: {about.data}; asks: {about.question}")
        if title == "leaderboards":
            print(f"  {HOURS}")
    return 0
