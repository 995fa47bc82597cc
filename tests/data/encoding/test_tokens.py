import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from virtue_jax.data.encoding.tokens import Tokenizer


def test_ids_are_the_golden_ids(arrays, tokenizer):
    rows = arrays("preprocess.json")["tokenize"]
    assert len(rows) >= 10
    assert [[text, tokenizer.ids(text)] for text, _ in rows] == rows


def golden_texts(arrays, golden):
    """(text, ids without padding, grids) of every case whose arrays are there."""
    folder = golden / "tiny" / "golden"
    for name, case in arrays("cases.json")["cases"].items():
        if (folder / f"case_{name}.npz").exists():
            stored, images = arrays(f"case_{name}.npz"), arrays("images.npz")
            for b, text in enumerate(case["texts"]):
                ids = stored["input_ids"][b][stored["attention_mask"][b] == 1]
                image = case["images"][b]
                yield text, ids, [] if image is None else images[f"{image}/grid_thw"]
    for case in arrays("paper_cases.json")["cases"].values():
        if (folder / case["file"]).exists():
            stored = arrays(case["file"])
            yield case["text"], stored["input_ids"][0], stored.get("grid_thw", [])


def test_expanded_texts_are_the_golden_input_ids(arrays, golden, tokenizer):
    tried = 0
    for text, expected, grids in golden_texts(arrays, golden):
        ids, starts = tokenizer.encode(text, [int(h * w) // 4 for _, h, w in grids])
        assert ids.dtype == np.int32 and len(starts) == len(grids)
        np.testing.assert_array_equal(ids, expected, err_msg=text)
        tried += 1
    assert tried >= 12


def test_each_image_starts_where_its_placeholder_stood(tokenizer):
    ids, starts = tokenizer.encode("a<|image_pad|>b<|image_pad|><|image_pad|>", [3, 1, 2])
    assert starts.tolist() == [1, 5, 6]
    assert np.flatnonzero(ids == tokenizer.image_token_id).tolist() == [1, 2, 3, 5, 6, 7]


def test_placeholders_and_images_must_agree(tokenizer):
    with pytest.raises(ValueError, match=r"2 <\|image_pad\|> for 1 images"):
        tokenizer.encode("<|image_pad|><|image_pad|>", [4])


def test_saving_and_pickling_keep_the_ids(arrays, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for again in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        for text, ids in arrays("preprocess.json")["tokenize"]:
            assert again.ids(text) == ids


def test_vocab_and_merges_alone_are_enough(arrays, golden, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(golden / "tiny" / "vlm" / name, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    for text, ids in arrays("preprocess.json")["tokenize"]:
        assert tokenizer.ids(text) == ids


def test_a_folder_without_tokenizer_files_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json nor vocab.json with merges.txt; copy"):
        Tokenizer.load(tmp_path)


def test_a_damaged_tokenizer_file_is_an_error_naming_the_folder(golden, tmp_path):
    shutil.copytree(golden / "tiny" / "vlm", tmp_path / "vlm", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = (tmp_path / "vlm" / "tokenizer.json").read_text()
    (tmp_path / "vlm" / "tokenizer.json").write_text(whole[:1000])
    with pytest.raises(ValueError, match=r"vlm: tokenizer files that transformers cannot read .*copy them anew"):
        Tokenizer.load(tmp_path / "vlm")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_token_id": 1011}, r"<\|image_pad\|> is 1012, the model's image_token_id is 1011"),
        ({"vision_start_token_id": 1000}, r"<\|vision_start\|> is 1009, the model's vision_start_token_id is 1000"),
        ({"vocab_size": 1000}, r"tokens, the model's vocab_size is 1000"),
    ],
)
def test_a_tokenizer_of_another_model_is_an_error(change, message, tokenizer, tiny_config):
    tokenizer.check(tiny_config.text)
    with pytest.raises(ValueError, match=message):
        tokenizer.check(dataclasses.replace(tiny_config.text, **change))


def test_files_of_the_published_tokenizer_as_transformers_5_writes_them_give_the_golden_ids(arrays, golden, tmp_path):
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    config = {"tokenizer_class": "Qwen2Tokenizer", "backend": "tokenizers", "extra_special_tokens": special}
    shutil.copy(golden / "tiny/vlm/tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    rows = arrays("preprocess.json")["tokenize"]
    assert [[text, tokenizer.ids(text)] for text, _ in rows] == rows
