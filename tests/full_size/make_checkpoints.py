"""Random checkpoints in the published formats, at a published size: names and shapes from tests/golden/full_size.

    PYTHONPATH=tests python -m full_size.make_checkpoints --out DIR [--size 2b|tiny] [--seed N]

`tiny` takes names and shapes from the golden tiny checkpoints instead, for a quick try. Qwen's tensors are made and
written one at a time; SAM-2's file holds 0.3 GB.
"""

import argparse
import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from golden_files import GOLDEN, TINY

from converters import connector
from converters.safetensors_file import write_safetensors
from converters.sources import open_folder, open_source

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FIRST_SHARD = 0.9  # of all bytes, about as the published 2B has it
SAM2_FILE = "sam2.1_hiera_base_plus.pt"

# Unit normal: rows of tables, tokens, positions. The rest follows from rank and suffix.
_UNIT = re.compile(
    r".*(_tokens?|_embed|point_embeddings\.\d)\.weight|.*_embed(_window)?|.*_gaussian_matrix|no_(mem|obj)_.*|maskmem.*"
)
# Ends of residual branches, by tower: divided by the number of branches that are added up.
_BRANCH_ENDS = re.compile(
    r".*(attn\.proj|self_attn\.o_proj|mlp\.fc2|mlp\.down_proj|trunk\.blocks\.\d+\.mlp\.layers\.1)\.weight"
)
_SELECTIVE = re.compile(r".*(q_proj|k_proj|attn\.qkv)\.weight")
_TOWERS = ("visual.blocks.", "model.layers.", "image_encoder.trunk.blocks.")


@dataclass(frozen=True)
class Listing:
    """{name: shape} of the three files; the connector's names as "outer.inner". sam2_yaml: for sizes not published."""

    vlm: Mapping[str, tuple[int, ...]]
    vlm_config: dict
    sam2: Mapping[str, tuple[int, ...]]
    connector: Mapping[str, tuple[int, ...]]
    sam2_yaml: Path | None = None


def listing(size: str) -> Listing:
    """The names and shapes of a size: "2b" (with SAM-2.1 b+) or "tiny"."""
    if size == "tiny":
        return Listing(
            vlm=_shapes(open_folder(TINY / "vlm")),
            vlm_config=json.loads((TINY / "vlm" / "config.json").read_text()),
            sam2=_shapes(open_source(TINY / "sam2_tiny.pt")),
            connector=_shapes(open_source(TINY / connector.FILE_NAME)),
            sam2_yaml=TINY / "sam2_tiny.yaml",
        )
    folder = GOLDEN / "full_size"
    return Listing(
        vlm=_listed(folder / f"qwen2_vl_{size}_instruct.json"),
        vlm_config=json.loads((folder / f"qwen2_vl_{size}_config.json").read_text()),
        sam2=_listed(folder / "sam2.1_hiera_b+.json"),
        connector=_listed(folder / f"virtue_sam2_reducer_and_vlm_layer_{size}.json"),
    )


def _shapes(source) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in source.infos.items()}


def _listed(file: Path) -> dict[str, tuple[int, ...]]:
    tensors = json.loads(file.read_text())["tensors"]
    return {name.replace("/", "."): tuple(shape) for name, shape in tensors.items()}


def make_checkpoints(out: Path, size: str, seed: int = 0) -> None:
    """Writes `vlm/` (Hugging Face, bfloat16, two shards), SAM-2's .pt and the connector's .pth (float32) into `out`."""
    import torch  # here, so that whoever only wants names and shapes stays small

    listed = listing(size)
    (out / "vlm").mkdir(parents=True)
    write_vlm(out / "vlm", listed, seed)
    write_tokenizer(out / "vlm", listed.vlm_config)
    sam2 = {name: torch.from_numpy(x) for name, x in random_tensors(listed.sam2, seed)}
    torch.save({"model": sam2}, out / SAM2_FILE)
    if listed.sam2_yaml is not None:
        shutil.copyfile(listed.sam2_yaml, (out / SAM2_FILE).with_suffix(".yaml"))
    nested: dict[str, dict] = {}
    for name, x in random_tensors(listed.connector, seed):
        outer, _, inner = name.partition(".")
        nested.setdefault(outer, {})[inner] = torch.from_numpy(x)
    torch.save(nested, out / connector.FILE_NAME)


def write_vlm(folder: Path, listed: Listing, seed: int) -> None:
    """config.json, two shards and their index."""
    (folder / "config.json").write_text(json.dumps(listed.vlm_config, indent=2))
    total, done, parts = sum(int(np.prod(s)) for s in listed.vlm.values()), 0, ({}, {})
    for name, shape in listed.vlm.items():
        parts[done > FIRST_SHARD * total][name] = shape
        done += int(np.prod(shape))
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = folder / f"model-{number:05d}-of-00002.safetensors"
        tensors = ((name, x.astype(BFLOAT16)) for name, x in random_tensors(part, seed, depths=_depths(listed.vlm)))
        write_safetensors(file, {name: (shape, BFLOAT16) for name, shape in part.items()}, tensors)
        weight_map |= dict.fromkeys(part, file.name)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, depths: Mapping[str, int] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) one at a time. The value of a tensor depends on its name, its shape and the seed only.

    Scales under which no activation explodes or vanishes and every part is heard: unit gain, the ends of residual
    branches divided by the root of their number, queries and keys so large that attention chooses, norms near one.
    """
    depths = _depths(shapes) if depths is None else depths
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            values *= 0.1
            if name.endswith("weight"):
                values += 1
        elif not _UNIT.fullmatch(name):
            values *= _gain(name, depths) / np.prod(shape[1:]) ** 0.5
        yield name, values


def _gain(name: str, depths: Mapping[str, int]) -> float:
    if _BRANCH_ENDS.fullmatch(name):
        depth = next((depth for tower, depth in depths.items() if name.startswith(tower)), 1)
        return (2 * depth) ** -0.5
    return 1.7 if _SELECTIVE.fullmatch(name) else 1.0


def _depths(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """{prefix of a tower: its number of blocks}, of the towers that are there."""
    found = {tower: {n[len(tower) :].split(".")[0] for n in shapes if n.startswith(tower)} for tower in _TOWERS}
    return {tower: len(blocks) for tower, blocks in found.items() if blocks}


def write_tokenizer(folder: Path, config: dict) -> None:
    """The golden tiny tokenizer with its 14 special tokens moved to where `config` has them.

    They stand in Qwen2-VL's order there too, so that one shift is right for all; the ids between are filled with words
    that no merge reaches, so that its length is the published tokenizer's.
    """
    source = TINY / "vlm"
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    options = json.loads((source / "tokenizer_config.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    start = len(vocabulary)
    image = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|image_pad|>")
    shift = config["image_token_id"] - image
    vocabulary |= {f"<unused {i}>": i for i in range(start, start + shift)}
    for token in tokenizer["added_tokens"]:
        token["id"] += shift
    options["added_tokens_decoder"] = {
        str(int(i) + shift): token for i, token in options["added_tokens_decoder"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2, ensure_ascii=False))
    for name in ("special_tokens_map.json", "preprocessor_config.json"):
        shutil.copyfile(source / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoints(arguments.out, arguments.size, arguments.seed)


if __name__ == "__main__":
    main()
