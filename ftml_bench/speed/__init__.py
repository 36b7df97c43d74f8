"""What takes how long, and how much memory: a file a question. Nothing here is part of a run."""
