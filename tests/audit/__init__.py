"""The audit of numbers and of counted operations: `tox -e audit` (CONTRIBUTING.md says what to do when it fails)."""
