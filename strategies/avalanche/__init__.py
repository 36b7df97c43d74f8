"""What Avalanche needs of a learner: the base of ours, its own plugins put right, and its strategies on arrivals."""
