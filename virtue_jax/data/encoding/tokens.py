"""Text -> token ids with the checkpoint's own tokenizer; image placeholders -> vision tokens."""

import json
import os
from collections.abc import Sequence

import numpy as np

from virtue_jax.config import TextConfig

IMAGE_TOKEN = "<|image_pad|>"
_SPECIAL = {
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    IMAGE_TOKEN: "image_token_id",
}


class Tokenizer:
    """A `transformers` tokenizer as VIRTUE uses it: no chat template, no token added at either end.

    Special tokens that stand in a text are read as such, as in the reference.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.image_token_id = _special_id(tokenizer, IMAGE_TOKEN)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Reads the tokenizer files of a model folder, offline.

        Raises:
            FileNotFoundError: no such folder, or no tokenizer files in it.
            ValueError: files that `transformers` cannot read, or a tokenizer without `<|image_pad|>`.
        """
        _require_files(folder)
        try:
            tokenizer = _read(os.fspath(folder))
        except Exception as error:
            raise ValueError(
                f"{folder}: tokenizer files that transformers cannot read ({error}); copy them anew"
            ) from error
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer's files into `folder`; `load` of them gives the same ids."""
        self.tokenizer.save_pretrained(os.fspath(folder))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added.

        Raises:
            ValueError: a text that the tokenizer does not take.
        """
        try:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # what the Rust tokenizer does not take it refuses by type
            raise ValueError(f"the tokenizer does not take the text {text[:80]!a} ({error}); correct it") from error

    def encode(self, text: str, vision_tokens: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Ids with the i-th `<|image_pad|>` repeated `vision_tokens[i]` times: (int32[n], first slot of each image).

        Raises:
            ValueError: as many placeholders as images are needed; names both numbers.
        """
        ids = np.array(self.ids(text), np.int32)
        places = np.flatnonzero(ids == self.image_token_id)
        if len(places) != len(vision_tokens):
            raise ValueError(f"{len(places)} {IMAGE_TOKEN} for {len(vision_tokens)} images in {text!r}")
        repeats = np.ones(len(ids), int)
        repeats[places] = vision_tokens
        starts = np.concatenate([[0], np.cumsum(repeats)])[places]
        return np.repeat(ids, repeats), starts

    def check(self, config: TextConfig) -> None:
        """Raises ValueError where the tokenizer does not belong to the model: special ids, size of the vocabulary."""
        wrong = [
            f"{token} is {_special_id(self.tokenizer, token)}, the model's {name} is {getattr(config, name)}"
            for token, name in _SPECIAL.items()
            if _special_id(self.tokenizer, token) != getattr(config, name)
        ]
        if len(self.tokenizer) > config.vocab_size:
            wrong.append(f"{len(self.tokenizer)} tokens, the model's vocab_size is {config.vocab_size}")
        if wrong:
            raise ValueError(f"this tokenizer is not the model's: {'; '.join(wrong)}; use the files of the checkpoint")


def _special_id(tokenizer, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
        raise ValueError(f"the tokenizer has no {token}; use the tokenizer files of a Qwen2-VL checkpoint")
    return token_id


def _read(folder: str):
    """transformers 4 reads what 5 wrote too: there, one class and the list of special tokens go by other names."""
    import transformers  # takes seconds to import; only whoever loads a tokenizer pays

    reader, names = transformers.AutoTokenizer, {}
    path = os.path.join(folder, "tokenizer_config.json")
    if int(transformers.__version__.partition(".")[0]) < 5 and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if config.get("tokenizer_class") == "TokenizersBackend":
            reader = transformers.PreTrainedTokenizerFast
        if isinstance(special := config.get("extra_special_tokens"), list):
            names = {"extra_special_tokens": {}, "additional_special_tokens": special}
    return reader.from_pretrained(folder, local_files_only=True, **names)


def _require_files(folder: str | os.PathLike) -> None:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of a model with its tokenizer files")
    present = set(os.listdir(folder))
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise FileNotFoundError(
            f"{folder}: neither tokenizer.json nor vocab.json with merges.txt; copy the tokenizer files there"
        )
