"""Runs: one file is one run, values only. `get_config()` gives what a
`TrainConfig` (`virtue_jax/train/step/config.py`) holds."""
