"""The judge of backends, shipped as a pytest plugin."""
