"""Backends for the judge: a small one that is right, and those that break one rule each."""
