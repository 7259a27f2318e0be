"""Environments of the `verifiers` package: `source.py` is the task source, the other modules import the package."""
