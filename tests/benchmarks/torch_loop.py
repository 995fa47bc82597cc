"""What the authors' training loop does, in plain PyTorch: `transformers`' Qwen2-VL and SAM-2, `peft`'s DoRA, GradCache.

    PYTHONPATH=.:tests python -m benchmarks.torch_loop --case DIR [--gradients FILE.npz]

As in sony/virtue (trainer.py, grad_cache.py, train_collator.py): every query has its own image and runs it through both
towers, in both passes of GradCache; chunks of two examples; each side padded, at the left, to the longest example of
the batch; AdamW over adapter and connector with the gradient's norm clipped. What comes after the two-way transformer
in SAM-2's mask decoder is not run, as theirs does not. Attention is torch's scaled_dot_product_attention. Positions are
given, so that both programs compute one function (theirs count them over the padding).

Nothing of virtue_jax's models is used. Steps are run on demand, see `worker.py`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from benchmarks.worker import serve
from parity.sam2_transformers import load_meta, torch_config
from torch import nn

CHUNK = 2


class TorchVirtue(nn.Module):
    """The model from files in the authors' formats; adapter and connector train."""

    def __init__(self, folder: Path):
        from full_size.torch_stages import load_connector
        from peft import PeftModel
        from transformers import Qwen2VLForConditionalGeneration, Sam2Model

        from converters.sam2 import read_geometry
        from converters.sources import open_source

        super().__init__()
        file = folder / "sam2.pt"
        config = read_geometry(open_source(file).infos, str(file), folder / "sam2.yaml")
        self.sam2 = Sam2Model._from_config(torch_config(config)).eval().requires_grad_(False)
        load_meta(self.sam2, torch.load(file, weights_only=True)["model"])
        self.reduce, self.project = load_connector(folder / "sam2_reducer_and_vlm_layer.pth")
        qwen = Qwen2VLForConditionalGeneration.from_pretrained(
            folder / "vlm", dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
        )
        self.qwen = PeftModel.from_pretrained(qwen, folder / "adapter", is_trainable=True)

    def segmentation_tokens(self, pixels_BCHW, boxes_B4):
        sam = self.sam2
        embed = sam.get_image_embeddings(pixels_BCHW)[-1]
        with torch.no_grad():
            sparse, dense = sam.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes_B4[:, None], input_masks=None
            )
            decoder = sam.mask_decoder
            own = (decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight)
            own = torch.cat(own).repeat(len(embed), 1, 1, 1)
            _, fused = decoder.transformer(
                point_embeddings=torch.cat([own, sparse], dim=2),
                image_embeddings=embed + dense,
                image_positional_embeddings=sam.get_image_wide_positional_embeddings().repeat(len(embed), 1, 1, 1),
                attention_similarity=None,
            )
        maps = fused[:, 0].transpose(1, 2).reshape(embed.shape)
        return self.project(self.reduce(maps).flatten(2).transpose(1, 2))

    def forward(self, chunk: dict[str, torch.Tensor]):
        """Unit vectors [B, hidden] of a chunk of one side."""
        inner = self.qwen.base_model.model.model
        inputs = inner.get_input_embeddings()(chunk["ids"])
        if "pixel_values" in chunk:
            vision = inner.visual(chunk["pixel_values"], grid_thw=chunk["grid"]).pooler_output
            inputs = inputs.masked_scatter(chunk["is_image"][..., None], vision)
            segmentation = self.segmentation_tokens(chunk["sam"], chunk["box"])
            inputs = inputs.masked_scatter(chunk["is_segmentation"][..., None], segmentation)
        hidden = inner.language_model(
            inputs_embeds=inputs, attention_mask=chunk["mask"], position_ids=chunk["positions"], use_cache=False
        ).last_hidden_state
        return nn.functional.normalize(hidden[:, -1], dim=-1)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def chunks(arrays: dict[str, np.ndarray], side: str) -> list[dict[str, torch.Tensor]]:
    """The batch's queries ("q") or targets ("t") in chunks, padded at the left to the longest of that side."""
    pairs, image_token = int(arrays["pairs"]), int(arrays["image_token"])
    length = max(arrays[f"{side}{i}_positions"].shape[1] for i in range(pairs))
    made = []
    for first in range(0, pairs, CHUNK):
        numbers = range(first, min(first + CHUNK, pairs))
        rows = [_padded(arrays, f"{side}{i}", length, image_token) for i in numbers]
        chunk = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        chunk["positions"] = chunk["positions"].transpose(1, 0, 2)
        if side == "q":
            chunk |= {name: np.stack([arrays[f"q{i}_{name}"] for i in numbers]) for name in ("grid", "sam", "box")}
            chunk["pixel_values"] = np.concatenate([arrays[f"q{i}_pixel_values"] for i in numbers])
        made.append({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in chunk.items()})
    return made


def _padded(arrays: dict[str, np.ndarray], name: str, length: int, image_token: int) -> dict[str, np.ndarray]:
    words, positions = arrays[f"{name}_ids"], arrays[f"{name}_positions"]
    pad, count = length - positions.shape[1], positions.shape[1] - len(words)
    ids = np.concatenate([np.zeros(pad + count, np.int64), words])
    place = np.arange(length)
    return {
        "ids": ids,
        "mask": (place >= pad).astype(np.int64),
        "positions": np.pad(positions, ((0, 0), (pad, 0))),
        "is_image": ids == image_token,
        "is_segmentation": (place >= pad) & (place < pad + count),
    }


class Training:
    """One batch, over and over."""

    def __init__(self, case: Path, learning_rate: float, temperature: float, clip_norm: float):
        self.model = TorchVirtue(case / "exported").train()
        with np.load(case / "inputs.npz") as file:
            arrays = dict(file)
        self.sides = [chunks(arrays, side) for side in "qt"]
        self.optimizer = torch.optim.AdamW(self.model.trainable().values(), lr=learning_rate, weight_decay=0.0)
        self.temperature, self.clip_norm = temperature, clip_norm

    def gradients(self) -> float:
        """Loss and accumulated gradients of the batch, by GradCache."""
        with torch.no_grad():
            reps = [torch.cat([self.model(chunk) for chunk in side]) for side in self.sides]
        queries, targets = reps = [rep.requires_grad_() for rep in reps]
        logits = queries @ targets.T / self.temperature
        loss = nn.functional.cross_entropy(logits, torch.arange(len(queries)))
        loss.backward()
        for side, rep in zip(self.sides, reps, strict=True):
            for chunk, gradient in zip(side, rep.grad.split(CHUNK), strict=True):
                torch.dot(self.model(chunk).flatten(), gradient.flatten()).backward()
        return float(loss.detach())

    def step(self) -> float:
        loss = self.gradients()
        nn.utils.clip_grad_norm_(self.model.trainable().values(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def named_gradients(self) -> dict[str, np.ndarray]:
        """{published name: gradient}, and the loss."""
        loss = self.gradients()
        found = {published(name): p.grad.numpy().copy() for name, p in self.model.trainable().items()}
        self.optimizer.zero_grad(set_to_none=True)
        return found | {"loss": np.array(loss)}


def published(name: str) -> str:
    """The name of a trainable parameter in the authors' files."""
    from converters.adapter import published_name

    if not name.startswith("qwen."):
        return name.replace("reduce.", "sam2_reducer.").replace("project.", "sam2vlm_layer.")
    return published_name(name.removeprefix("qwen.").replace(".default.", ".").removesuffix(".default"))


def main() -> None:
    from benchmarks.case import CLIP_NORM, LEARNING_RATE, TEMPERATURE

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--gradients", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    training = Training(arguments.case, LEARNING_RATE, TEMPERATURE, CLIP_NORM)
    if arguments.gradients:
        np.savez(arguments.gradients, **training.named_gradients())
    serve(training.step, {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
