"""Runs: one file is one run, values only. `get_config()` gives what `virtue_jax.train.config.TrainConfig` holds."""
