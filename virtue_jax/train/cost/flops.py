"""FLOPs of one training step: what the model needs (for MFU), and what the compiled step executes.

The convention, for all figures in this project:

- A multiplication and its addition are two FLOPs. Matrix products and convolutions count; norms, softmax,
  activations, rotary angles, look-ups, resizing and the loss do not.
- Useful: real tokens, patches, images and prompts only, no padding; an image that several examples share counts once.
- A frozen tower counts x1 (forward). Inside what is differentiated, a product with a frozen weight counts x2 (forward
  and the gradient of its input), one with a trained weight x3, attention x3 (forward x1, backward x2). The connector's
  first product behind frozen towers counts x2: its input needs no gradient.
- Attention counts the products of queries with keys and of weights with values within an image or an example; causal
  attention half of the square. Windows of SAM-2's trunk count whole: their padding is seen by attention.
- Nothing is recomputed: neither rematerialised layers nor GradCache's second forward pass; DoRA's column norms and the
  second product with the frozen weight that its dropout needs are not counted either.

`executed_flops` counts all of these: static shapes, padding, recomputation, the squares that an attention kernel does
not skip (`attention_cost`). useful / executed is the share of arithmetic that was not wasted.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from virtue_jax.config import AdapterConfig, Numerics, Sam2Config, TextConfig, VirtueConfig, VisionConfig
from virtue_jax.data.config import RowGroup
from virtue_jax.ops.attention import AUTO
from virtue_jax.train.cost.attention_cost import attention_cost
from virtue_jax.train.cost.image_encoder import Products, image_encoder, tpu_overhead
from virtue_jax.train.cost.work import Work, capacity

CONNECTOR_DOOR = "connector.reduce.kernel"
LAST_PRODUCT = "text.layers.mlp.down_proj.kernel"
OWN_TOKENS = 2  # object score and IoU, beside the mask tokens

# FLOP/s of one device in bfloat16 with float32 accumulation, dense, by the start of `device_kind`; longest match wins.
# TPUs: cloud.google.com/tpu/docs; GPUs: the vendor's data sheets (SXM).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


class StepFlops(NamedTuple):
    """FLOPs of a step by part: SAM-2's image encoder, its prompts (encoder and two-way transformer), Qwen's vision
    tower, the connector, the language model with its adapter."""

    sam2: float
    prompts: float
    vision: float
    connector: float
    text: float

    @property
    def towers(self) -> float:
        return self.sam2 + self.prompts + self.vision

    @property
    def language_model(self) -> float:
        """Language model and connector."""
        return self.connector + self.text

    @property
    def total(self) -> float:
        return sum(self)


def useful_flops(config: VirtueConfig, work: Work, trainable: Collection[str]) -> StepFlops:
    """FLOPs that a step on `work` needs (module docstring). trainable: paths of the parameters that train."""
    trained = set(trainable)
    totals = {}
    for part, (linear, attention) in forward_products(config, work).items():
        differentiated = _differentiated(part, trained)
        square = 0.5 if part == "text" else 1.0
        totals[part] = sum(flops * _passes(path, trained, differentiated) for path, flops in linear.items())
        totals[part] += attention * square * (3 if differentiated else 1)
    return StepFlops(**totals)


def executed_flops(
    config: VirtueConfig, groups: Iterable[RowGroup], numerics: Numerics, trainable: Collection[str]
) -> StepFlops:
    """FLOPs that the compiled step executes on static row groups, over all devices; micro_batches must be chosen.

    Towers that do not train run once. What is differentiated runs forward once more under GradCache (more than one
    micro-batch), and once more under remat "layer" and, but for its attention kernel and last product, "outputs"; under
    "dots" attention alone does, where it is no kernel.
    """
    if numerics.attention == AUTO:
        raise ValueError("executed_flops: numerics.attention 'auto' is not resolved yet (train.setup.with_attention)")
    trained, total = set(trainable), [0.0] * len(StepFlops._fields)
    for group in groups:
        if group.micro_batches < 1:
            raise ValueError(f"executed_flops: micro_batches of {group} are not chosen yet")
        parts = forward_products(config, capacity(group))
        for i, part in enumerate(StepFlops._fields):
            total[i] += _executed(config, group, numerics, part, parts[part], trained)
    return StepFlops(*total)


def mfu(useful: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation in 0..1: useful FLOPs of a step, its seconds, peak FLOP/s of all devices together."""
    return useful / (seconds * peak)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device (bfloat16) by `jax.Device.device_kind`; None where it is not known (CPUs)."""
    known = [kind for kind in PEAKS if device_kind.startswith(kind)]
    return PEAKS[max(known, key=len)] if known else None


def _differentiated(part: str, trained: set[str]) -> bool:
    prefix = {"sam2": "sam2.", "prompts": "sam2.", "vision": "vision."}.get(part)
    return prefix is None or any(path.startswith(prefix) for path in trained)


def _passes(path: str, trained: set[str], differentiated: bool) -> int:
    if path == CONNECTOR_DOOR and not _differentiated("sam2", trained):
        return 1 + (path in trained)  # nothing before it trains: its input needs no gradient
    return 1 if not differentiated else 3 if path in trained else 2


def _executed(config, group: RowGroup, numerics: Numerics, part: str, products: Products, trained: set[str]) -> float:
    differentiated = _differentiated(part, trained)
    chunked = differentiated and group.micro_batches > 1
    inside = differentiated and part != "connector"  # of what `Numerics.remat` is about
    layers = inside and numerics.remat in ("layer", "outputs")
    linear = sum(
        flops * (_passes(path, trained, differentiated) + chunked + layers) for path, flops in products.linear.items()
    )
    if part == "text":
        linear += _adapter_overhead(config, numerics, products.linear, 2 + chunked + layers)
        linear -= _not_recomputed(config, numerics) * products.linear[LAST_PRODUCT] if layers else 0
    elif part == "sam2" and numerics.attention == "splash":
        images, runs = group.rows * group.shape.images, 1 + chunked + (inside and numerics.remat != "none")
        linear += tpu_overhead(config.sam2, images, numerics.compute, runs, differentiated)
    kernel_kept = numerics.attention == "splash" and numerics.remat in ("outputs", "dots")
    again = chunked + (inside and numerics.remat in ("layer", "outputs", "dots") and not kernel_kept)
    square, backward = attention_cost(config, group, numerics, part)
    return linear + products.attention * square * (1 + again + (backward if differentiated else 0))


def _drops_frozen(adapter: AdapterConfig, numerics: Numerics) -> bool:
    """Whether DoRA needs a second product with the frozen kernels."""
    return adapter.dropout > 0 and numerics.dora_dropout == "peft"


def _adapter_overhead(config: VirtueConfig, numerics: Numerics, linear: dict[str, float], passes: int) -> float:
    """DoRA: the second product with the frozen weight where there is dropout, and A B for the column norm."""
    adapter, text = config.adapter, config.text
    if adapter is None or not adapter.use_dora:
        return 0.0
    adapted = _adapted(adapter, _text_linears(text))
    norm = sum(2 * text.num_hidden_layers * adapter.rank * d_in * d_out for _, d_in, d_out in adapted)
    second = sum(linear[f"{path}.kernel"] for path, _, _ in adapted) if _drops_frozen(adapter, numerics) else 0.0
    return norm + passes * second


def _not_recomputed(config: VirtueConfig, numerics: Numerics) -> int:
    """How many of the products that end a layer are spared when it is computed again: the residual stream needs none of
    them, the gradient of DoRA's magnitude one (the second, where there are two) unless its sum was kept."""
    adapter = config.adapter
    if adapter is None or not adapter.use_dora or "down_proj" not in adapter.targets:
        return 1
    products = 2 if _drops_frozen(adapter, numerics) else 1
    return products if numerics.remat == "outputs" else products - 1


def forward_products(config: VirtueConfig, work: Work) -> dict[str, Products]:
    """FLOPs of one forward pass over `work`, by the parts of `StepFlops`."""
    return {
        "sam2": image_encoder(config.sam2, work.images),
        "prompts": _prompts(config.sam2, work),
        "vision": _vision(config.vision, work),
        "connector": _connector(config, work.prompts),
        "text": _text(config, work),
    }


def _prompts(config: Sam2Config, work: Work) -> Products:
    """The two-way transformer's image side; its last attention, which only the masks need, is not run."""
    dim, inner = config.d_model, config.d_model // config.attention_downsample_rate
    places = work.prompts * config.embedding_size**2
    tokens = work.prompts * (OWN_TOKENS + config.num_mask_tokens) + work.prompt_tokens
    linear, root, half = {}, "sam2.mask_decoder.transformer.layers", 2.0 * dim * inner
    for i in range(config.decoder_depth):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            seen = places if name in ("k_proj", "v_proj") else tokens
            other = tokens if name in ("k_proj", "v_proj") else places
            linear[f"{root}.{i}.self_attn.{name}.kernel"] = 2.0 * tokens * dim**2
            linear[f"{root}.{i}.cross_attn_token_to_image.{name}.kernel"] = half * seen
            linear[f"{root}.{i}.cross_attn_image_to_token.{name}.kernel"] = half * other
        for name in ("fc1", "fc2"):
            linear[f"{root}.{i}.mlp.{name}.kernel"] = 2.0 * tokens * dim * config.decoder_mlp_dim
    mean = tokens / max(work.prompts, 1)
    attention = config.decoder_depth * 4.0 * (tokens * mean * dim + 2 * mean * places * inner)
    mask, channels = "sam2.prompt_encoder.mask_downscaling", config.mask_in_chans
    area = work.masks * config.embedding_size**2
    linear[f"{mask}.conv1.kernel"] = 2.0 * 4 * area * 4 * (channels // 4)
    linear[f"{mask}.conv2.kernel"] = 2.0 * area * 4 * (channels // 4) * channels
    linear[f"{mask}.conv3.kernel"] = 2.0 * area * channels * dim
    return Products(linear, attention)


def _vision(config: VisionConfig, work: Work) -> Products:
    dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    merged = config.spatial_merge_size**2 * dim
    tokens = work.patches / config.spatial_merge_size**2
    sizes = {"attn.qkv": 3 * dim**2, "attn.proj": dim**2, "mlp.fc1": dim * hidden, "mlp.fc2": hidden * dim}
    linear = {f"vision.blocks.{name}.kernel": 2.0 * work.patches * config.depth * n for name, n in sizes.items()}
    linear["vision.patch_embed.kernel"] = 2.0 * work.patches * config.patch_dim * dim
    linear["vision.merger.fc1.kernel"] = 2.0 * tokens * merged**2
    linear["vision.merger.fc2.kernel"] = 2.0 * tokens * merged * config.hidden_size
    return Products(linear, 4.0 * config.depth * work.patch_pairs * dim)


def _connector(config: VirtueConfig, prompts: int) -> Products:
    dim, tokens = config.sam2.d_model, 2.0 * prompts * config.segmentation_tokens
    linear = {
        "connector.reduce.kernel": tokens * (config.CONNECTOR_STRIDE * dim) ** 2,
        "connector.fc1.kernel": tokens * dim**2,
        "connector.fc2.kernel": tokens * dim * config.text.hidden_size,
    }
    return Products(linear, 0.0)


def _text_linears(config: TextConfig) -> list[tuple[str, int, int]]:
    """(path, in, out) of the linear modules of a layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
    mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    layers = [(f"text.layers.self_attn.{name}", *size) for name, size in attention.items()]
    layers.append(("text.layers.self_attn.o_proj", queries, hidden))
    return layers + [(f"text.layers.mlp.{name}", *size) for name, size in mlp.items()]


def _adapted(adapter: AdapterConfig, linears: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [linear for linear in linears if linear[0].rsplit(".", 1)[1] in adapter.targets]


def _text(config: VirtueConfig, work: Work) -> Products:
    text, adapter = config.text, config.adapter
    per_weight, linears = 2.0 * work.tokens * text.num_hidden_layers, _text_linears(text)
    linear = {f"{path}.kernel": per_weight * d_in * d_out for path, d_in, d_out in linears}
    for path, d_in, d_out in [] if adapter is None else _adapted(adapter, linears):
        linear[f"{path}.lora_a"] = per_weight * d_in * adapter.rank
        linear[f"{path}.lora_b"] = per_weight * adapter.rank * d_out
    width = text.num_attention_heads * text.head_dim
    return Products(linear, 4.0 * text.num_hidden_layers * work.token_pairs * width)
