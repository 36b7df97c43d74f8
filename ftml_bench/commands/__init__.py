"""What each command of `ftml-bench` does with its options. Nothing heavy is imported before it is needed."""
