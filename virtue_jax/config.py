"""Which numbers: geometry of the towers, behaviour presets, numerics. Values only; names neither jax nor files."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HieraConfig:
    """Geometry of SAM-2's image trunk (Hiera, arXiv 2306.00989), named as in the published yaml.

    Block i sits in the stage that `stages` gives it. The first block of stages 2, 3 and 4 doubles the width and
    the heads and pools its queries 2x2; it still uses the window of the stage before it.
    """

    embed_dim: int
    num_heads: int
    stages: tuple[int, ...]
    global_att_blocks: tuple[int, ...]
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (14, 14)

    @property
    def stage_dims(self) -> tuple[int, ...]:
        return tuple(self.embed_dim * 2**i for i in range(len(self.stages)))


@dataclass(frozen=True)
class Sam2Config:
    """Geometry of the parts of SAM-2.1 that VIRTUE runs: image encoder, prompt encoder, two-way transformer."""

    hiera: HieraConfig
    d_model: int = 256
    image_size: int = 1024
    fpn_top_down_levels: tuple[int, ...] = (2, 3)
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    mask_in_chans: int = 16
    num_mask_tokens: int = 4

    @property
    def embedding_size(self) -> int:
        """Side of the square feature map that the two-way transformer reads (stride 16)."""
        return self.image_size // 16

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits that the prompt encoder takes (stride 4)."""
        return self.image_size // 4


@dataclass(frozen=True)
class VisionConfig:
    """Geometry of Qwen2-VL's vision tower, from `vision_config` of `config.json`."""

    depth: int
    embed_dim: int
    num_heads: int
    hidden_size: int
    mlp_ratio: float = 4.0
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def patch_dim(self) -> int:
        """Values of one patch of one frame (the second frame of an image is a copy and is not stored)."""
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """Geometry of Qwen2-VL's language model and the token ids that the data pipeline needs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA / DoRA on the linear layers whose last path component is in `targets`; r, alpha, dropout as in PEFT."""

    rank: int = 8
    alpha: float = 64.0
    dropout: float = 0.1
    use_dora: bool = True
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Compat:
    """Every behaviour in which the released PyTorch code differs from its paper, by name.

    sam_source: "raw" = the image itself, normalised once; "qwen" = Qwen's resized and CLIP-normalised image,
        normalised again.
    box_frame: "image" = boxes are scaled from image pixels to SAM's frame; "verbatim" = image pixels are handed to
        SAM as if they were its frame. Points are scaled in both: the released demo does so.
    positions: "mrope", "prefix" or "sequential": the rotary scheme, see `data/encoding/positions.py`.
    image_markup: what stands for an image in a prompt made from the template (the released code has no
        `<|vision_start|>`).
    prompt_kinds: "all", or "single" = one box or one positive point per example, no mask.
    coordinates_in_text: whether the template writes the box or point into the text, as the reference's prompts do.
    box_numbers: how it writes a box: "integral" = whole numbers without a fraction; "python" = as Python prints the
        list, so that a column of floats gives `[1.0, 2.0, 201.0, 201.99]`.
    marker_alone: what becomes of a published text's `<|image_1|>` where the side has no image: "drop", or "token" =
        `<|image_pad|>` as a word of its own, embedded by its row of the table.
    evaluation_gap: what stands between the image and a query of SCaR-Eval, and not of SCaR-Train.
    exif_orientation: "apply" = people's own pictures are turned upright, so that boxes are in the pixels that viewers
        show (`Example.upright`); "ignore" = every picture is read as stored, as the released code does.
    """

    sam_source: str = "raw"
    box_frame: str = "image"
    positions: str = "mrope"
    image_markup: str = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt_kinds: str = "all"
    coordinates_in_text: bool = True
    box_numbers: str = "integral"
    marker_alone: str = "drop"
    evaluation_gap: str = ""
    exif_orientation: str = "apply"

    def __post_init__(self):
        _one_of("sam_source", self.sam_source, ("raw", "qwen"))
        _one_of("box_frame", self.box_frame, ("image", "verbatim"))
        _one_of("positions", self.positions, POSITION_SCHEMES)
        _one_of("prompt_kinds", self.prompt_kinds, ("all", "single"))
        _one_of("box_numbers", self.box_numbers, ("integral", "python"))
        _one_of("marker_alone", self.marker_alone, ("drop", "token"))
        _one_of("exif_orientation", self.exif_orientation, ("apply", "ignore"))

    @classmethod
    def paper(cls) -> "Compat":
        """What the method means: the default for training."""
        return cls()

    @classmethod
    def released(cls) -> "Compat":
        """What `codes/` of sony/virtue computes from its second forward pass on: for the published VIRTUE weights."""
        return cls(
            sam_source="qwen",
            box_frame="verbatim",
            positions="prefix",
            image_markup="<|image_pad|>",
            prompt_kinds="single",
            box_numbers="python",
            marker_alone="token",
            evaluation_gap=" ",
            exif_orientation="ignore",
        )

    @classmethod
    def preset(cls, name: str) -> "Compat":
        _one_of("compat", name, ("released", "paper"))
        return cls.released() if name == "released" else cls.paper()


# Of images with values in 0..1, per colour channel: Qwen2-VL's tower (CLIP's numbers) and SAM-2 (ImageNet's).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

POSITION_SCHEMES = ("prefix", "sequential", "mrope")
FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VirtueConfig:
    """A whole VIRTUE: the two image towers, the language model, the adapter, and how inputs are prepared for them.

    `min_pixels`/`max_pixels` bound Qwen's resized image (the reference trains with 4 to 1,280 vision tokens);
    `points_per_side` is the grid given as one prompt where an image comes without one.
    """

    sam2: Sam2Config
    vision: VisionConfig
    text: TextConfig
    adapter: AdapterConfig | None = None
    compat: Compat = field(default_factory=Compat)
    points_per_side: int = 3
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 1280 * 28 * 28

    CONNECTOR_STRIDE = 4  # the released connector's Conv2d(kernel 4, stride 4)

    @property
    def segmentation_tokens(self) -> int:
        """Segmentation tokens per prompt: 256 at SAM's 1024-pixel input."""
        return (self.sam2.embedding_size // self.CONNECTOR_STRIDE) ** 2


REMAT = ("none", "layer", "outputs", "dots", "auto")


@dataclass(frozen=True)
class Numerics:
    """How a model computes: activation dtype, parameter dtype, attention backend, rematerialisation.

    remat: what a backward pass keeps of each layer: everything ("none"), its input ("layer": everything else is
    computed again), what its attention kernel and the sum that ends it gave as well ("outputs"), or the results of all
    its matrix products ("dots"). "auto": training chooses by a memory estimate;
    without training the same as "none". attention: a backend of `ops.attention` that a model can run with; "auto"
    in a run file (`train.config.RunNumerics`) is resolved before a model is made.
    """

    compute: str = "float32"
    params: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    dora_dropout: str = "peft"

    def __post_init__(self):
        _one_of("numerics.compute", self.compute, FLOATS)
        _one_of("numerics.params", self.params, FLOATS)
        _one_of("numerics.remat", self.remat, REMAT)
        _one_of("numerics.dora_dropout", self.dora_dropout, ("peft", "branch"))


def to_dict(config: Any) -> dict:
    """A config dataclass as plain JSON-able values."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict, where: str = "config") -> Any:
    """The inverse of `to_dict`; `where` names the origin in errors.

    Raises:
        ValueError: unknown or missing keys, with their dotted place.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown or missing:
        raise ValueError(
            f"{where} ({cls.__name__}): unknown keys {unknown}, missing keys {missing}; known: {sorted(fields)}"
        )
    return cls(**{name: _coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _coerce(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected the values of a {hint.__name__}, got {value!r}")
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        (item, *_) = typing.get_args(hint)
        if not dataclasses.is_dataclass(item):
            return tuple(value)
        return tuple(_coerce(item, each, f"{where}[{i}]") for i, each in enumerate(value))
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected names with values, got {value!r}")
        _, item = typing.get_args(hint)
        return {name: _coerce(item, each, f"{where}.{name}") for name, each in value.items()}
    if hint is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, hint):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
