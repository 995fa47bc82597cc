"""Other people's checkpoint formats in and out of virtue_jax: `python -m converters --help`."""
