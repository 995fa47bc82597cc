"""The published sizes of VIRTUE as geometry alone, for whoever needs shapes and has no weights (`virtue compile`).

Values: `config.json` of Qwen2-VL-2B-Instruct and Qwen2-VL-7B-Instruct, SAM 2.1's `sam2.1_hiera_b+.yaml`, the adapter of
the published VIRTUE checkpoints.
"""

from virtue_jax.config import AdapterConfig, HieraConfig, Sam2Config, TextConfig, VirtueConfig, VisionConfig

_TOKENS = {"image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653}
_HEADS = {"mrope_section": (16, 24, 24)}
_TEXT = {
    "2b": TextConfig(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        **_HEADS,
        **_TOKENS,
    ),
    "7b": TextConfig(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        **_HEADS,
        **_TOKENS,
    ),
}
SIZES = tuple(_TEXT)
_HIERA_B_PLUS = HieraConfig(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3), global_att_blocks=(12, 16, 20))


def published_geometry(size: str) -> VirtueConfig:
    """The whole model of a published size ("2b", "7b"), adapter included, behaviour "paper".

    Raises:
        ValueError: no such size.
    """
    if size not in _TEXT:
        raise ValueError(f"size {size!r}: expected one of {', '.join(SIZES)}")
    text = _TEXT[size]
    vision = VisionConfig(depth=32, embed_dim=1280, num_heads=16, hidden_size=text.hidden_size)
    return VirtueConfig(Sam2Config(_HIERA_B_PLUS), vision, text, AdapterConfig())
