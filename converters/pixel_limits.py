"""The pixel limits of Qwen2-VL's image processor: into the model's config on import, back into its file on export.

Which limits a model has. Qwen publishes its models with 4 to 16,384 vision tokens (3,136 to 12,845,056 pixels), VIRTUE
is trained with 4 to 1,280 (1,003,520 pixels): the reference's training and evaluation pass their own limits to the
processor, whatever its file says. So Qwen's published maximum is nobody's choice, and `VirtueConfig`'s stands in its
place, which is said. Any other limit was chosen by whoever made the folder, and is kept.

Which key has them. `min_pixels` and `max_pixels`, or since `transformers` 4.5x `size` with `shortest_edge` and
`longest_edge` (pixels too, despite their names); of both, the first two count. The file is `preprocessor_config.json`,
or, where `transformers` 5 saved a whole processor, `processor_config.json` under `image_processor`, which counts first.
"""

import json
from pathlib import Path

from converters.errors import CheckpointError, refuse
from virtue_jax.config import CLIP_MEAN, CLIP_STD, VirtueConfig, VisionConfig

FILES = ("processor_config.json", "preprocessor_config.json")  # in the order in which `transformers` believes them
_NESTED = "image_processor"
_PUBLISHED_MAX = 16384 * 28 * 28
_VIRTUE_MAX = VirtueConfig.__dataclass_fields__["max_pixels"].default
_KEYS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))


def read_limits(folder: Path, vision: VisionConfig) -> tuple[dict[str, int], list[str]]:
    """({"min_pixels", "max_pixels"} as far as the folder's files choose them, lines that say what was not taken).

    Raises:
        CheckpointError: limits that are no limits, or a processor that prepares images otherwise than this
            implementation does (size of patches, normalisation).
    """
    file, processor = _image_processor(folder)
    if file is None:
        return {}, []
    limits = {key: value for key, value in _limits(processor).items() if value is not None}
    refuse(_problems(file, processor, limits, vision))
    if limits.get("max_pixels") != _PUBLISHED_MAX or limits.get("min_pixels", 0) > _VIRTUE_MAX:
        return limits, []
    del limits["max_pixels"]
    line = f"{file.name} allows {_PUBLISHED_MAX} pixels, as Qwen publishes it; VIRTUE's limit is kept: {_VIRTUE_MAX}"
    return limits, [line]


def write_limits(folder: Path, config: VirtueConfig) -> None:
    """Writes the config's limits into the processor files of an exported folder, under the keys that they have; files
    that say the same already stay as they are, byte for byte."""
    wanted = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        values = _read(file)
        processor = values.get(_NESTED) if name == FILES[0] else values
        if not isinstance(processor, dict) or _limits(processor) == wanted:
            continue
        for key, edge in _KEYS:
            in_size = isinstance(processor.get("size"), dict) and edge in processor["size"]
            if in_size:
                processor["size"][edge] = wanted[key]
            if processor.get(key) is not None or not in_size:
                processor[key] = wanted[key]
        file.write_text(json.dumps(values, indent=2) + "\n")


def _image_processor(folder: Path) -> tuple[Path | None, dict]:
    nested, flat = (folder / name for name in FILES)
    if nested.is_file() and isinstance(processor := _read(nested).get(_NESTED), dict):
        return nested, processor
    return (flat, _read(flat)) if flat.is_file() else (None, {})


def _read(file: Path) -> dict:
    try:
        values = json.loads(file.read_text())
        values.items()
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError([f"{file}: expected the processor's JSON ({error})"]) from error
    return values


def _limits(processor: dict) -> dict[str, object]:
    size = processor.get("size")
    size = size if isinstance(size, dict) else {}
    return {
        key: next((v for v in (processor.get(key), size.get(key), size.get(edge)) if v is not None), None)
        for key, edge in _KEYS
    }


def _problems(file: Path, processor: dict, limits: dict, vision: VisionConfig) -> list[str]:
    problems = [
        f"{file}: {key} is {value!r}, expected a positive number of pixels"
        for key, value in limits.items()
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0
    ]
    side = vision.patch_size * vision.spatial_merge_size
    if not problems:
        low, high = limits.get("min_pixels", 1), limits.get("max_pixels", _VIRTUE_MAX)
        if low > high:
            problems.append(f"{file}: min_pixels {low} is above max_pixels {high}")
        if high < side * side:
            problems.append(f"{file}: max_pixels {high} is less than the {side * side} pixels of one vision token")
    fixed = [
        ("patch_size", vision.patch_size),
        ("merge_size", vision.spatial_merge_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("image_mean", list(CLIP_MEAN)),
        ("image_std", list(CLIP_STD)),
        ("do_resize", True),
        ("do_normalize", True),
        ("do_rescale", True),
        ("resample", 3),
    ]
    return problems + [
        f"{file}: {key} is {processor[key]!r}, only {value!r} is supported: images are always prepared so here"
        for key, value in fixed
        if processor.get(key) is not None and processor[key] != value
    ]
