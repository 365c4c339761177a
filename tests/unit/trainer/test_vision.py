"""How many tokens an image is: what the model's own processor makes of it, told without that."""

from __future__ import annotations

import json
import math
from shutil import copytree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from finetune_api.failures import FailureCode
from finetune_api.trainer import Start
from finetune_trainer.data.model import check_architecture, read_without_weights
from finetune_trainer.failures import RunFailed
from finetune_trainer.vision import Vision, read_vision

SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.sampled_from([4, 14, 16]), st.integers(1, 3), st.integers(1, 400), st.integers(1, 3000))
def test_an_image_has_as_many_tokens_as_the_processor_makes(height, width, patch, merge, fewest, more):
    if max(height, width) > 200 * min(height, width):
        return
    bounds = {"shortest_edge": fewest**2, "longest_edge": (fewest + more) ** 2}
    processor = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, size=bounds)
    vision = Vision(0, patch, merge, *bounds.values())
    patches = processor.get_number_of_image_patches(height, width)
    assert vision.tokens(height, width) == patches // merge**2
    assert math.prod(vision.resized(height, width)) == patches * patch**2


def test_the_pixels_of_an_image_are_those_of_its_tokens():
    processor = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": 4096})
    vision = Vision(0, 4, 2, 256, 4096)
    for height, width in ((5, 9), (32, 32), (100, 31), (700, 50)):
        made = processor(images=[np.zeros((height, width, 3), np.uint8)], return_tensors="np")
        assert len(made["pixel_values"]) == 4 * vision.tokens(height, width)


def test_a_text_has_the_tokens_of_each_image_in_its_place():
    vision = Vision(0, 4, 2, 256, 4096)
    images = [{"height": 16, "width": 16}, {"height": 16, "width": 24}]
    assert vision.expanded("a<i>b<i>c", "<i>", images) == "a" + 4 * "<i>" + "b" + 6 * "<i>" + "c"
    assert vision.expanded("a", "<i>", []) == "a"
    for text in ("a<i>b", "a<i>b<i>c<i>", "a", "a<i><i>b"):
        assert vision.expanded(text, "<i>", images) is None


def test_a_model_says_in_either_file_how_it_takes_images(vision_model, tmp_path):
    folder = copytree(vision_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    first, second = folder / "preprocessor_config.json", folder / "processor_config.json"
    expected = Vision(config["image_token_id"], 4, 2, 16 * 16, 64 * 64)
    assert read_vision(folder, config) == expected
    given = json.loads(first.read_text())
    first.unlink()
    assert read_vision(folder, config) is None
    second.write_text(json.dumps({"image_processor": given}))
    assert read_vision(folder, config) == expected
    size = given.pop("size")
    old = given | {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    second.write_text(json.dumps({"image_processor": old}))
    assert read_vision(folder, config) == expected


def test_other_models_take_none(vision_model):
    config = json.loads((vision_model / "config.json").read_text())
    assert read_vision(vision_model, config | {"model_type": "llava"}) is None
    assert read_vision(vision_model, {}) is None


def test_of_two_files_the_one_goes_first_that_transformers_reads(vision_model, tmp_path):
    folder = copytree(vision_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    given = json.loads((folder / "preprocessor_config.json").read_text())
    bounds = {"shortest_edge": 100, "longest_edge": 1000}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": given | {"size": bounds}}))
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    assert dict(processor.size) == bounds
    assert read_vision(folder, config) == Vision(config["image_token_id"], 4, 2, 100, 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 8},
        {"merge_size": 4},
        {"patch_size": "wide"},
        {"patch_size": 4.0},
        {"size": {}},
        {"size": {"shortest_edge": 256, "longest_edge": 4096, "height": 32}},
        {"min_pixels": 0},
        {"do_resize": False},
        {"temporal_patch_size": 1},
    ],
)
def test_a_processor_that_does_not_fit_is_refused(vision_model, tmp_path, changes):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((vision_model / name).read_bytes())
    given = json.loads((vision_model / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given | changes))
    with pytest.raises(RunFailed, match="does not fit its vision encoder") as end:
        read_without_weights(str(tmp_path), None)
    assert end.value.failure.code is FailureCode.MODEL_UNSUPPORTED


def test_a_token_of_images_that_the_vocabulary_does_not_have_is_refused(vision_model, tmp_path):
    folder = copytree(vision_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 100000}))
    with pytest.raises(RunFailed) as end:
        read_without_weights(str(folder), None)
    assert end.value.failure.code is FailureCode.MODEL_UNSUPPORTED


def test_weights_of_another_encoder_do_not_stand_for_a_model(vision_model, tmp_path):
    folder = copytree(vision_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["depth"] = 27
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFailed, match=r"its vision_config\.depth is 27, that of .* is 2"):
        check_architecture(Start(model=f"file://{folder}", same_as=f"file://{vision_model}"), {}, offline=True)
