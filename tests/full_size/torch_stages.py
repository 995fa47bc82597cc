"""PyTorch on the same checkpoint files and the same input arrays: `transformers`' Sam2Model and Qwen2-VL in float32.

    python -m full_size.torch_stages --checkpoints DIR --inputs DIR --out NAME [--device cuda] [--dtype bfloat16]

Nothing of virtue_jax's models or checkpoints is used, but for the geometry that the converters read of SAM-2's file.
The assembly follows the golden README, section 5. Writes NAME.json (figures) and NAME.npz (arrays, channels last).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from full_size.example_input import read_batch, read_facts
from full_size.make_checkpoints import SAM2_FILE
from full_size.measured import Figures, peak_gib, resident_gib
from parity.sam2_transformers import load_meta, torch_config, two_way_stages
from torch import nn
from transformers import Qwen2VLForConditionalGeneration, Sam2Model

from converters import connector as connector_file
from converters.sam2 import read_geometry
from converters.sources import open_source
from virtue_jax.batch import NOT_A_POINT, Batch

RUNS = 2
BOX = [2, 3, NOT_A_POINT]


class TorchVirtue:
    """The three parts, loaded from the checkpoint files in float32, on a device."""

    def __init__(self, checkpoints: Path, device: str = "cpu"):
        self.device = device
        file = checkpoints / SAM2_FILE
        yaml = file.with_suffix(".yaml")
        config = read_geometry(open_source(file).infos, str(file), yaml if yaml.is_file() else None)
        self.sam2 = Sam2Model._from_config(torch_config(config)).eval()
        load_meta(self.sam2, torch.load(file, weights_only=True)["model"])
        self.sam2.to(device)
        self.reduce, self.project = (m.to(device) for m in load_connector(checkpoints / connector_file.FILE_NAME))
        qwen, loaded = Qwen2VLForConditionalGeneration.from_pretrained(
            checkpoints / "vlm", dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if loaded["missing_keys"] or loaded["unexpected_keys"] or loaded["mismatched_keys"]:
            raise SystemExit(f"transformers did not load all of {checkpoints / 'vlm'}: {loaded}")
        self.qwen = qwen.eval().model.to(device)

    def fuse(self, batch: Batch) -> dict[str, torch.Tensor]:
        """image_embed and fused_map, channels last."""
        if batch.prompt_labels[0, 0].tolist() != BOX:
            raise SystemExit(f"the prompt is not a box alone: labels {batch.prompt_labels[0, 0]}")
        pixels = torch.from_numpy(batch.sam_images[:, 0]).permute(0, 3, 1, 2).contiguous().to(self.device)
        embed = self.sam2.get_image_embeddings(pixels)[-1]
        corners = torch.from_numpy(batch.prompt_points[:, 0, :2]).reshape(1, 1, 4).to(self.device)
        fused = two_way_stages(self.sam2, embed, {"input_boxes": corners})["map"]
        return {"image_embed": embed.permute(0, 2, 3, 1), "fused_map": fused[:, 0].reshape(1, *embed.shape[2:], -1)}

    def segmentation_tokens(self, fused: torch.Tensor) -> torch.Tensor:
        reduced = self.reduce(fused.permute(0, 3, 1, 2))
        return self.project(reduced.flatten(2).transpose(1, 2))

    def vision_tokens(self, batch: Batch, facts: dict) -> torch.Tensor:
        patches = torch.from_numpy(batch.patches[0]).reshape(-1, 3, 1, 196)
        pixel_values = patches.expand(-1, 3, 2, 196).reshape(len(patches), -1).to(self.device)
        grid = torch.tensor([[1, *facts["grid"]]]).to(self.device)
        return self.qwen.visual(pixel_values, grid_thw=grid).pooler_output

    def language_model(self, batch: Batch, facts: dict, segmentation: torch.Tensor, vision: torch.Tensor):
        """(hidden states [S, H] after the final norm, positions [3, S]): [segmentation tokens][words and vision]."""
        count, image = facts["segmentation_tokens"], facts["image_token_id"]
        ids = np.where(batch.vision_slot[0] >= 0, image, batch.tokens[0])[count:]
        ids = torch.from_numpy(ids.astype(np.int64))[None].to(self.device)
        grid, types = torch.tensor([[1, *facts["grid"]]]).to(self.device), (ids == image).int()
        own, _ = self.qwen.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grid)
        words = self.qwen.get_input_embeddings()(ids)
        words[ids == image] = vision.to(words.dtype)
        positions = torch.cat([torch.zeros(3, 1, count, dtype=own.dtype, device=own.device), own], dim=2)
        inputs = torch.cat([segmentation, words], dim=1)
        out = self.qwen.language_model(inputs_embeds=inputs, position_ids=positions, use_cache=False)
        return out.last_hidden_state[0], positions[:, 0]


def load_connector(file: Path) -> tuple[nn.Module, nn.Module]:
    """(the strided convolution, Linear - GELU - Linear) of the released connector."""
    state = torch.load(file, weights_only=True)
    width, hidden = state["sam2_reducer"]["weight"].shape[0], state["sam2vlm_layer"]["2.weight"].shape[0]
    reduce = nn.Conv2d(width, width, kernel_size=4, stride=4)
    project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, hidden))
    reduce.load_state_dict(state["sam2_reducer"])
    project.load_state_dict(state["sam2vlm_layer"])
    return reduce, project


@torch.inference_mode()
def run(model: TorchVirtue, batch: Batch, facts: dict, figures: Figures, number: int) -> dict[str, torch.Tensor]:
    """All stages once, timed."""
    with figures.timed(f"sam2_{number}"):
        arrays = model.fuse(batch)
        segmentation = model.segmentation_tokens(arrays["fused_map"])
    with figures.timed(f"vision_{number}"):
        vision = model.vision_tokens(batch, facts)
    with figures.timed(f"text_{number}"):
        hidden, positions = model.language_model(batch, facts, segmentation, vision)
    last = hidden[-1]
    return arrays | {
        "segmentation_tokens": segmentation,
        "vision_tokens": vision,
        "hidden": hidden,
        "last_hidden": last,
        "embedding": nn.functional.normalize(last, dim=0),
        "positions": positions,
    }


def _array(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.is_floating_point() else x).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    figures = Figures(started_gib=resident_gib())
    with figures.timed("load"):
        model = TorchVirtue(arguments.checkpoints, arguments.device)
    figures["load_peak_gib"], figures["loaded_gib"] = peak_gib(), resident_gib()
    batch, facts = read_batch(arguments.inputs), read_facts(arguments.inputs)
    for number in range(RUNS):
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            arrays = run(model, batch, facts, figures, number)
    np.savez(arguments.out.with_suffix(".npz"), **{name: _array(x) for name, x in arrays.items()})
    figures.write(arguments.out.with_suffix(".json"))


if __name__ == "__main__":
    main()
