"""The command line of the converters: `python -m converters import | export | inspect`."""

import argparse
import sys
from pathlib import Path

from converters.plan import DTYPES
from virtue_jax.console import console
from virtue_jax.exit_status import DONE, REFUSED

_EPILOG = """the three forms of import:
  a base model with a trained connector, with or without its adapter:
    python -m converters import --vlm DIR --sam2 FILE.pt --connector FILE.pth [--adapter DIR] --out DIR
  the authors' merged Hugging Face folder (SAM-2's weights come from Meta's file):
    python -m converters import --virtue DIR --sam2 FILE.pt --out DIR
  base models and a fresh connector, to train from:
    python -m converters import --vlm DIR --sam2 FILE.pt --out DIR [--seed N]
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status, `REFUSED` after printing what is wrong."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    try:
        _COMMANDS[command](arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    return DONE


def _import(arguments: dict) -> None:
    from converters.importing import ImportRequest, run

    if arguments["virtue"] is not None and arguments["adapter"] is not None:
        raise ValueError("--adapter goes with --vlm: a --virtue folder has its adapter merged into the weights")
    run(ImportRequest(**arguments), console(stderr=True))


def _export(arguments: dict) -> None:
    from converters.exporting import ExportRequest, run

    run(ExportRequest(**arguments), console(stderr=True))


def _inspect(arguments: dict) -> None:
    from converters.inspecting import run

    run(arguments["path"], console())


_COMMANDS = {"import": _import, "export": _export, "inspect": _inspect}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m converters", description="Other people's checkpoints in and out.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_import(commands)
    export = commands.add_parser("export", help="model directory -> Hugging Face, PEFT and PyTorch files")
    export.add_argument("--model", type=Path, required=True, help="model directory")
    export.add_argument("--out", type=Path, required=True, help="directory to write; it appears whole or not at all")
    export.add_argument("--merge-adapter", action="store_true", help="the authors' merged Hugging Face folder")
    export.add_argument(
        "--adapter-names",
        choices=("both", "published", "current"),
        default="both",
        help="tensor names in the PEFT file: as the authors' code has them, as transformers >= 4.52 has them, or both",
    )
    export.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    inspect = commands.add_parser("inspect", help="what a checkpoint is: geometry, tensors, dtypes")
    inspect.add_argument("path", type=Path, help="a file or folder in any of the formats, or a model directory")
    return parser


def _add_import(commands) -> None:
    parser = commands.add_parser(
        "import",
        help="Hugging Face, PEFT and PyTorch files -> model directory",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--vlm", type=Path, help="Hugging Face folder of Qwen2-VL")
    base.add_argument("--virtue", type=Path, help="Hugging Face folder of a merged VIRTUE")
    parser.add_argument("--sam2", type=Path, required=True, help="Meta's SAM-2.1 checkpoint (.pt)")
    parser.add_argument("--sam2-config", type=Path, help="its yaml, for sizes other than the published t, s, b+, l")
    parser.add_argument("--connector", type=Path, help="sam2_reducer_and_vlm_layer.pth; without it: a fresh connector")
    parser.add_argument("--adapter", type=Path, help="PEFT adapter folder (adapter_model.safetensors or .bin)")
    parser.add_argument("--processor", type=Path, help="folder of tokenizer and processor files, if elsewhere")
    parser.add_argument("--out", type=Path, required=True, help="model directory; it appears whole or not at all")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="of the parameters (default: as they come)")
    parser.add_argument(
        "--compat",
        choices=("released", "paper"),
        help="behaviour (default: released with a trained connector, paper with a fresh one)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a fresh connector")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


if __name__ == "__main__":
    sys.exit(main())
