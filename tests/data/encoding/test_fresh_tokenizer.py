"""A tokenizer trained on a run's own texts: every byte, its special tokens, and files that any `transformers` reads."""

import json

import pytest

from virtue_jax.data.encoding.fresh_tokenizer import SPECIAL_TOKENS, train_tokenizer
from virtue_jax.data.encoding.tokens import Tokenizer

TEXTS = ["a photo of a cat", "the dog is 12 by 7 cm", "été — 猫 😀"]
ASKED = [*TEXTS, "<|vision_start|><|image_pad|><|vision_end|> can't  stop\n\n", "\x00 ظ"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS, 300))


def test_every_text_comes_back_and_special_tokens_are_one_id_each(tokenizer):
    assert [tokenizer.tokenizer.decode(tokenizer.ids(text)) for text in ASKED] == ASKED
    assert [tokenizer.ids(token) for token in SPECIAL_TOKENS] == [[292 + i] for i in range(len(SPECIAL_TOKENS))]
    assert len(tokenizer.tokenizer) == 300
    with pytest.raises(ValueError, match="at least 264 are needed"):
        train_tokenizer(TEXTS, 263)


@pytest.mark.parametrize(
    "written",
    [
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": list(SPECIAL_TOKENS)},
        {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": list(SPECIAL_TOKENS)},
    ],
    ids=["transformers 5", "transformers 4"],
)
def test_files_of_either_version_of_transformers_give_the_same_ids_and_can_be_saved_again(tokenizer, written, tmp_path):
    tokenizer.save(tmp_path / "first")
    for path in (tmp_path / "first").iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    (tmp_path / "first/tokenizer_config.json").write_text(json.dumps(written | ends))
    first = Tokenizer.load(tmp_path / "first")
    first.save(tmp_path / "second")
    for again in (first, Tokenizer.load(tmp_path / "second")):
        assert [again.ids(text) for text in ASKED] == [tokenizer.ids(text) for text in ASKED]
        assert (again.tokenizer.eos_token, again.tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
