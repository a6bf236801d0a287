"""CLIP and SigLIP folders as encoder and text encoder: small models of random weights against `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import normalize

from medad_core.config import Settings
from medad_core.errors import WeightsError
from medad_core.models.converter import new_converter
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import encoder_fingerprint, load_encoder
from medad_core.models.text import load_text_encoder, text_encoder_fingerprint
from medad_core.models.vision import CLIP_MEAN, CLIP_STD
from medad_core.models.weights import save_converter, save_decoder
from medad_core.run.fingerprints import maps_fingerprint, shared_fingerprint
from medad_core.stages.loading import load_map_models

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 16,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "healthy", "brain", "tumour", "in", "the", "with", "of"]
SENTENCES = ["a healthy brain", "tumour in the brain", "a"]


def write_tokenizer(folder: Path, framed: bool, pad: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start = "<start> " if framed else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token=pad, unk_token="<unk>"
    ).save_pretrained(folder)


def clip(folder: Path, seed: int = 0, **options) -> transformers.CLIPModel:
    """A CLIP whose text configuration has an end token of 2, as old ones do.

    The width of its projection is a default, not its own.
    """
    torch.manual_seed(seed)
    text = {**TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 8}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**VISION, "image_size": 224}, projection_dim=24)
    ).eval()
    model.save_pretrained(folder, **options)
    write_tokenizer(folder, framed=True, pad="<end>")
    return model


def siglip(folder: Path, version: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    text = {**TEXT, "max_position_embeddings": 12, "projection_size": 32}
    vision = {**VISION, "image_size": 256} if version == "Siglip" else {**VISION, "num_patches": 256}
    model = getattr(transformers, f"{version}Model")(
        getattr(transformers, f"{version}Config")(text_config=text, vision_config=vision)
    ).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, framed=False, pad="<end>")
    return model


def test_clip_text_is_the_projected_state_of_the_first_end_token(tmp_path):
    model, encoder = clip(tmp_path), load_text_encoder(str(tmp_path))
    for sentence, given in zip(SENTENCES, encoder.encode(SENTENCES), strict=True):
        ids = torch.tensor([[1, *(WORDS.index(word) for word in sentence.split()), 2]])
        with torch.inference_mode():
            state = model.text_model(input_ids=ids).last_hidden_state[:, -1]
            torch.testing.assert_close(given, normalize(model.text_projection(state), dim=-1)[0], atol=1e-6, rtol=1e-5)
    assert encoder.width == 24


def test_clip_text_that_is_too_long_keeps_its_end_token(tmp_path, caplog):
    clip(tmp_path)
    encoder = load_text_encoder(str(tmp_path))
    with caplog.at_level("WARNING", "medad_core"):
        long = encoder.encode(["a healthy brain with tumour in the brain of a brain"])
    assert "longer than the 8 tokens" in caplog.text
    torch.testing.assert_close(long, encoder.encode(["a healthy brain with tumour in"]))


@pytest.mark.parametrize("version", ["Siglip", "Siglip2"])
def test_siglip_text_is_its_pooler_on_lower_case_padded_to_the_full_length(tmp_path, version):
    model, encoder = siglip(tmp_path, version), load_text_encoder(str(tmp_path))
    ids = [WORDS.index(word) for word in SENTENCES[1].split()] + [2]
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=torch.tensor([ids + [2] * (12 - len(ids))])).pooler_output
    torch.testing.assert_close(
        encoder.encode([SENTENCES[1].upper()]), normalize(expected, dim=-1), atol=1e-6, rtol=1e-5
    )
    assert encoder.width == 32


def test_siglip_is_tapped_without_dropping_a_token(tmp_path):
    model, encoder = siglip(tmp_path, "Siglip"), load_encoder(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 240, 200), np.uint8)
    taps = encoder.encode(images)
    with torch.inference_mode():
        hidden = model.vision_model(
            pixel_values=encoder.prepare(images), interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
    assert taps.shape == (2, 4, 14, 14, 32) and encoder.tapped == (1, 2, 3, 4)
    for tap, block in enumerate(encoder.tapped):
        torch.testing.assert_close(taps[:, tap].flatten(1, 2), hidden[block], atol=1e-5, rtol=1e-4)


def test_siglip2_of_any_resolution_gets_the_patches_of_its_own_processor(tmp_path):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    model, encoder = siglip(tmp_path, "Siglip2"), load_encoder(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    inputs = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=196)(
        np.stack([image] * 3, -1), return_tensors="pt"
    )
    assert inputs["spatial_shapes"].tolist() == [[14, 14]]
    with torch.inference_mode():
        hidden = model.vision_model(**inputs, output_hidden_states=True).hidden_states
    taps = encoder.encode(image[None])
    for tap, block in enumerate(encoder.tapped):
        torch.testing.assert_close(taps[:, tap].flatten(1, 2), hidden[block], atol=1e-5, rtol=1e-4)


def test_mean_and_std_are_those_of_the_folder_and_part_of_the_fingerprint(tmp_path):
    clip(tmp_path)
    plain = encoder_fingerprint(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    assert encoder_fingerprint(str(tmp_path)) == plain
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    assert encoder_fingerprint(str(tmp_path)) != plain
    assert load_encoder(str(tmp_path)).prepare(np.full((1, 16, 16), 255, np.uint8)).unique().tolist() == [2.0]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.0]}))
    with pytest.raises(WeightsError, match="three numbers"):
        load_encoder(str(tmp_path))


def test_shards_are_read_hashed_and_missed(tmp_path):
    clip(tmp_path / "one")
    clip(tmp_path / "many", max_shard_size="40KB")
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    prints = encoder_fingerprint(str(tmp_path / "many"))["encoder_sha256"]
    hashes = prints.split(" config ")[0].split()
    assert (
        len(shards) > 1
        and len(set(hashes)) == len(shards)
        and text_encoder_fingerprint(str(tmp_path / "many"))["text_encoder_sha256"].startswith(prints)
    )
    images = np.zeros((1, 224, 224), np.uint8)
    torch.testing.assert_close(
        load_encoder(str(tmp_path / "many")).encode(images), load_encoder(str(tmp_path / "one")).encode(images)
    )
    shards[1].unlink()
    with pytest.raises(WeightsError, match=shards[1].name):
        encoder_fingerprint(str(tmp_path / "many"))


def test_a_folder_that_lacks_a_tower_is_refused_rather_than_filled_with_random_weights(tmp_path):
    model = clip(tmp_path)
    model.vision_model.save_pretrained(tmp_path / "vision")
    with pytest.raises(WeightsError, match="architecture 'clip_vision_model' is not supported"):
        load_text_encoder(str(tmp_path / "vision"))
    (tmp_path / "vision" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    write_tokenizer(tmp_path / "vision", framed=True, pad="<end>")
    with pytest.raises(WeightsError, match="weights are missing"):
        load_text_encoder(str(tmp_path / "vision"))


def test_a_damaged_file_a_missing_tokenizer_and_an_unknown_model_are_one_line_each(tmp_path):
    clip(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for load in (load_encoder, load_text_encoder):
        with pytest.raises(WeightsError, match=r"get (the model|it) again") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(WeightsError, match="no tokenizer"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    with pytest.raises(WeightsError, match="architecture 'nothing-known' is not supported; known: dinov2"):
        encoder_fingerprint(str(tmp_path))


def test_weights_of_another_clip_as_encoder_or_text_encoder_are_refused_before_any_model_is_loaded(
    tmp_path, monkeypatch
):
    for seed, name in enumerate(("mine", "other")):
        clip(tmp_path / name, seed)
    mine = Settings.model_validate(
        {
            "models": {
                "encoder": str(tmp_path / "mine"),
                "text_encoder": str(tmp_path / "mine"),
                "weights": str(tmp_path),
            }
        }
    )
    save_decoder(
        Decoder(4, 32, torch.eye(2, 24)),
        tmp_path,
        {**encoder_fingerprint(mine.models.encoder), **shared_fingerprint(mine)},
    )
    save_converter(new_converter("compact", torch.eye(2, 24), 16, 1.0), tmp_path, {}, "chat")
    models = load_map_models(mine)
    assert models.decoder(models.encoder.encode(np.zeros((1, 240, 240), np.uint8))).shape == (1, 4, 14, 14)
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded")
    )
    assert maps_fingerprint(mine)["decoder_sha256"]
    for key in ("encoder", "text_encoder"):
        foreign = Settings.model_validate(
            {"models": {**mine.models.model_dump(), key: str(tmp_path / "other")}}, strict=False
        )
        with pytest.raises(WeightsError, match=f" {key}_sha256 is .*, made for "):
            maps_fingerprint(foreign)
