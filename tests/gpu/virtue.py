"""`python -m gpu.virtue COMMAND ...`: the `virtue` script, wherever it is installed."""

from virtue_jax.cli.main import main

if __name__ == "__main__":
    main()
