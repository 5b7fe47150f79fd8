"""`python -m tests.bench`: what the gateway costs beside the same native calls, measured in turns within one run."""
