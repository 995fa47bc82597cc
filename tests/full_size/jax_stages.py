"""virtue_jax on the example: loads a model directory, embeds through `Embedder`, and writes every stage's output.

    python -m full_size.jax_stages --model DIR --inputs DIR --dtype float32|bfloat16 --out NAME
        [--stages] [--attention auto]

Writes NAME.json (figures) and NAME.npz (arrays).
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from full_size.example_input import EXAMPLES, read_batch, read_facts
from full_size.measured import Figures, peak_gib, resident_gib

from virtue_jax import Embedder
from virtue_jax.batch import Batch
from virtue_jax.config import Compat, Numerics
from virtue_jax.data.encoding.tokens import Tokenizer
from virtue_jax.model_directory import load_model
from virtue_jax.models.parameters import bind, parameters
from virtue_jax.models.virtue import Virtue
from virtue_jax.ops.attention import resolve_backend
from virtue_jax.parallel.mesh import MeshConfig, make_mesh, platform_of

RUNS = 2  # after the one that compiles


def stages(model: Virtue, batch: Batch) -> dict[str, jax.Array]:
    """Every stage's output for a row that holds one example; its embedding is `last_hidden` of unit length."""
    towers = model.towers(batch)
    hidden = model.text(model.splice(batch, towers), batch.positions, batch.segments)
    return {
        "image_embed": model.sam2.encode_image(batch.sam_images[:, 0]),
        "fused_map": towers.fused[:, 0],
        "segmentation_tokens": model.connector(towers.fused[:, 0]),
        "vision_tokens": towers.vision[0],
        "hidden": hidden[0],
        "last_hidden": hidden[0, batch.pool[0, 0]],
    }


def embed(embedder: Embedder, example: dict, figures: Figures) -> np.ndarray:
    """The example's embedding; times the first call (with what of it was compilation) and `RUNS` further ones."""
    compiled: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with figures.timed("first_embed"):
        vector = embedder.embed([example])[0]
    figures["compile_s"] = round(sum(compiled), 3)
    for number in range(RUNS):
        with figures.timed(f"embed_{number}"):
            again = embedder.embed([example])[0]
        if not np.array_equal(again, vector):
            raise SystemExit("the same example embedded twice gives two vectors")
    figures["embed_peak_gib"] = peak_gib()
    return vector


def run_stages(model: Virtue, inputs: Path, figures: Figures) -> dict[str, np.ndarray]:
    """`stages` of the stored batch, and its last hidden state with the box of another object."""
    batch, params = read_batch(inputs), parameters(model)
    program = jax.jit(lambda params, batch: stages(bind(model, params), batch)).lower(params, batch).compile()
    memory = program.memory_analysis()
    figures["program_arguments_gib"] = memory.argument_size_in_bytes / 2**30
    figures["program_temporaries_gib"] = memory.temp_size_in_bytes / 2**30
    with figures.timed("stages"):
        arrays = {name: np.asarray(x, np.float32) for name, x in program(params, batch).items()}
    points = np.array(read_facts(inputs)["other_points"], np.float32)
    other = program(params, batch._replace(prompt_points=points[None, None]))
    return arrays | {"other_prompt_last_hidden": np.asarray(other["last_hidden"], np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--attention", default="xla", help="of --stages; auto = the kernel of this machine's device")
    arguments = parser.parse_args()
    figures, dtype = Figures(started_gib=resident_gib()), arguments.dtype
    with figures.timed("load"):
        if arguments.stages:
            backend = resolve_backend(arguments.attention, platform_of(make_mesh(MeshConfig(), jax.devices()[:1])))
            config, model = load_model(arguments.model, Numerics(dtype, dtype, backend), compat=Compat.paper())
            embedder = Embedder(config, model, Tokenizer.load(arguments.model))
        else:
            embedder = Embedder.load(arguments.model, compat="paper", dtype=dtype)
    figures["load_peak_gib"], figures["loaded_gib"] = peak_gib(), resident_gib()
    example = json.loads((arguments.inputs / EXAMPLES).read_text())[0]
    arrays = {"embedding": embed(embedder, example, figures)}
    if arguments.stages:
        arrays |= run_stages(model, arguments.inputs, figures)
    np.savez(arguments.out.with_suffix(".npz"), **arrays)
    figures.write(arguments.out.with_suffix(".json"))


if __name__ == "__main__":
    main()
