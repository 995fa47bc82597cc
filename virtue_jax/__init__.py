"""virtue_jax: VIRTUE (Visual-InteRactive Text-Image Universal Embedder, arXiv 2510.00523) in JAX/Flax."""
