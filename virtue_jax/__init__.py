"""virtue_jax: VIRTUE (Visual-InteRactive Text-Image Universal Embedder, arXiv 2510.00523) in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtue_jax.embedding.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    """`virtue_jax.Embedder`, imported on first use: it brings in jax, flax and transformers."""
    if name == "Embedder":
        from virtue_jax.embedding.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'virtue_jax' has no attribute {name!r}")
