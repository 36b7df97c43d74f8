"""A leaderboard, from its definition in YAML to the files of its cells."""
