"""What the four runs of the paper share: two stages (MMEB-train, then SCaR-train), two sizes, batch 1,024 or 8,192.

Published (arXiv 2510.00523 and its training scripts): global batch 1,024, sub-batches of 64 from one data set, AdamW at
2e-5 with 200 steps of warm-up and linear decay, temperature 0.02, 2,000 steps on MMEB-train (every subset with weight
1, its first 100,000 rows) and 1,000 on SCaR-train (likewise), DoRA r 8, alpha 64, dropout 0.1; bfloat16, images at
native resolution up to 1,280 vision tokens. Ours: targets that equal another query's positive are not pushed away
(`mask_duplicates`).

`large`: batch 8,192 for the same number of pairs, so an eighth of the steps and of the warm-up; the learning rate is
multiplied by sqrt(8), the square-root rule for Adam (Malladi et al. 2022, arXiv 2205.10287). Its DoRA layers drop out
the input of the low-rank branch alone, which spares a second product with every frozen kernel (a fifth of the step);
`--config.numerics.dora_dropout=peft` trains as the paper's code does, and the batch of 1,024 does so by itself.

Rows: found by `virtue rows --lengths` (`virtue_jax/data/row_groups/choose.py`) and a longer search by the same
simulated packing, for 2B on 64 devices and 16 streams (`large`: 256 and 64; every host has a stream or several); 7B
takes the same. All lengths have large blocks for the attention kernel (`ops/splash.py`), and they hold the largest
image (5,120 patches). On lengths like the data's, row efficiency is 0.95 (SCaR) and 0.93 (MMEB; `large` 0.97), and 1 to
4 % of the batch waits for the next step (BENCHMARKS.md, "Row efficiency"). For real data: `virtue rows --config FILE
--devices N` prints what suits it best. SCaR's rows of small and of large images are equally long, so that one run of
the language model takes both.

Memory: remat and micro-batches are chosen for the devices; `virtue compile` shows with what result on every TPU.
"""

import ml_collections

SCAR_SUBSETS = ("SCAR_RefCOCO_plus", "SCAR_RefCOCOg", "SCAR_ADE20K", "SCAR_VisualGenome", "SCAR_COCO_Stuff")
SCAR_LIMIT = 100_000  # rows of a subset that VIRTUE's train_scar.yaml lets in, the first ones
VARIANTS = ("", "large")


def published_run(
    variant: str, *, size: str, directory: str, steps: int, sources: dict, rows: dict, fsdp: int, adapter: dict | None
) -> ml_collections.ConfigDict:
    """Values of a `TrainConfig`; rows: row groups by variant."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: expected no variant, or large")
    large = 8 if variant == "large" else 1
    model = {"directory": directory, "size": size} | ({} if adapter is None else {"adapter": adapter})
    return ml_collections.ConfigDict(
        {
            "model": model,
            "data": {
                "sources": sources,
                "rows": rows[variant],
                "interleave": 64,
                "streams": 64 if large > 1 else 16,
                "pixels": "uint8",
                "workers": 8,
            },
            "steps": steps // large,
            "batch_size": 1024 * large,
            "optimizer": {"learning_rate": 2e-5 * large**0.5, "warmup_steps": 200 // large, "decay": "linear"},
            "numerics": {
                "compute": "bfloat16",
                "params": "bfloat16",
                "attention": "auto",
                "remat": "auto",
                "dora_dropout": "branch" if large > 1 else "peft",
            },
            "loss": {"temperature": 0.02},
            "mesh": {"data": -1, "fsdp": fsdp},
            "log_every": 10,
            "checkpoint_every": 50,
            "checkpoint_minutes": 15.0,
            "watchdog_minutes": 30.0,
        }
    )


DORA = {
    "rank": 8,
    "alpha": 64.0,
    "dropout": 0.1,
    "use_dora": True,
    "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
}


def scar_sources(folder: str) -> dict:
    """The five subsets, as VIRTUE's train_scar.yaml mixes them."""
    return {
        name: {
            "kind": "scar",
            "path": f"{folder}/{name}",
            "image_root": f"{folder}/images",
            "weight": 1.0,
            "limit": SCAR_LIMIT,
        }
        for name in SCAR_SUBSETS
    }


def _images(rows: int, *, slots: int, examples: int, vision: tuple[int, int], images: int, points: int) -> dict:
    """A group of rows; vision: vision rows and the patches of each. One prompt on every image."""
    shape = {"slots": slots, "examples": examples, "vision_rows": vision[0], "patches": vision[1]}
    return {"shape": shape | {"images": images, "prompts": images, "points": points}, "rows": rows}


BOX, GRID = 3, 10  # points of a prompt: two corners, or a grid of nine, and SAM-2's padding point


def _scar_rows(batches: int, examples: int) -> dict:
    """For so many times 1,024 pairs; examples: of a row of small images, which takes up the targets."""
    return {
        "images_1": _images(128 * batches, slots=2048, examples=examples, vision=(3, 1536), images=4, points=BOX),
        "images_2": _images(128 * batches, slots=1536, examples=24, vision=(2, 2048), images=2, points=BOX),
        "images_3": _images(128 * batches, slots=2048, examples=12, vision=(1, 5120), images=4, points=BOX),
    }


SCAR_ROWS = {"": _scar_rows(1, 48), "large": _scar_rows(8, 64)}
MMEB_ROWS = {
    "": {
        "images_1": _images(256, slots=2560, examples=80, vision=(2, 4096), images=4, points=GRID),
        "images_2": _images(128, slots=3072, examples=24, vision=(2, 5120), images=5, points=GRID),
    },
    "large": {
        "images_1": _images(1280, slots=3072, examples=96, vision=(3, 3072), images=5, points=GRID),
        "images_2": _images(1280, slots=3072, examples=24, vision=(2, 5120), images=5, points=GRID),
    },
}
