"""A byte-level BPE tokenizer trained on a run's own texts, in Qwen2-VL's file format: for models from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# In the order of Qwen2-VL's vocabulary; the first is its padding and beginning-of-sequence token.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """At most `vocab_size` tokens, special ones included; every byte has a token, so nothing is unknown.

    Raises:
        ValueError: a vocabulary too small to hold all bytes.
    """
    needed = 256 + len(SPECIAL_TOKENS)
    if vocab_size < needed:
        raise ValueError(f"vocab_size {vocab_size}: at least {needed} are needed (256 bytes and the special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(SPECIAL_TOKENS)
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),  # by the name that transformers 4 and 5 know
        padding_side="left",
    )
