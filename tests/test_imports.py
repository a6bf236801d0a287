"""Checkpoints of other projects: ImageBind against its original implementation, and files that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.errors import MedadError, UsageError, WeightsError
from medad_core.imports.checkpoint import read_state
from medad_core.imports.imagebind import import_imagebind
from medad_core.imports.llm import import_llm
from medad_core.models.encoder import encoder_fingerprint, load_encoder, quarter_blocks
from medad_core.models.text import load_sentences, load_text_encoder, text_features

TOLERANCE = 1e-4
VISION_BLOCK, TEXT_BLOCK = "modality_trunks.vision.blocks.", "modality_trunks.text.blocks."


@pytest.fixture(scope="module")
def tiny(shared_data) -> Path:
    folder = shared_data / "imagebind_tiny"
    if not folder.is_dir():
        pytest.skip(f"the small ImageBind is not at {folder}")
    return folder


@pytest.fixture(scope="module")
def imagebind(tiny, tmp_path_factory) -> Path:
    """The small ImageBind as a CLIP folder."""
    folder = tmp_path_factory.mktemp("models") / "imagebind"
    import_imagebind(tiny / "imagebind_tiny.pth", folder)
    return folder


@pytest.fixture(scope="module")
def expected(tiny):
    return np.load(tiny / "expected.npz")


@pytest.fixture
def state(tiny) -> dict[str, torch.Tensor]:
    return torch.load(tiny / "imagebind_tiny.pth", weights_only=True)


def refused(path: Path, folder: Path, *texts: str, error: type[MedadError] = WeightsError) -> None:
    """The file is refused in one line that names it and holds the texts, and nothing is left at or beside `folder`."""
    with pytest.raises(error) as caught:
        import_imagebind(path, folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and all(text in message for text in (str(path), *texts)), message
    assert not [left for left in folder.parent.iterdir() if left != path]


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def test_embeddings_are_those_of_the_original_implementation(imagebind, expected):
    from transformers import CLIPModel

    model, info = CLIPModel.from_pretrained(
        imagebind, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.inference_mode():
        out = model(input_ids=torch.from_numpy(expected["token_ids"]), pixel_values=torch.from_numpy(expected["image"]))
        text = out.text_embeds * model.logit_scale.exp()
    np.testing.assert_allclose(out.image_embeds.numpy(), expected["image_embedding"], atol=TOLERANCE)
    np.testing.assert_allclose(text.numpy(), expected["text_embedding"], atol=TOLERANCE)


def test_every_block_output_of_the_encoder_is_that_of_the_original_implementation(imagebind, expected):
    encoder, blocks = load_encoder(str(imagebind)), []
    layers = encoder.family.blocks(encoder.model)
    for layer in layers:
        layer.register_forward_hook(
            lambda _module, _inputs, output: blocks.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.inference_mode():
        encoder.model(pixel_values=torch.from_numpy(expected["image"]))
    assert len(blocks) == 8 and encoder.tapped == quarter_blocks(8)
    for number, block in enumerate(blocks):
        np.testing.assert_allclose(block.numpy(), expected[f"block_{number}"], atol=TOLERANCE)


def test_text_encoder_turns_sentences_into_the_original_embeddings(imagebind, tiny, expected):
    texts = json.loads((tiny / "meta.json").read_text())["texts"]
    encoder = load_text_encoder(str(imagebind))
    given = encoder.tokenizer(texts)["input_ids"]
    for ids, reference in zip(given, expected["token_ids"].tolist(), strict=True):
        assert ids == reference[: len(ids)] and not any(reference[len(ids) :])
    reference = expected["text_embedding"] / np.linalg.norm(expected["text_embedding"], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(texts).numpy(), reference, atol=TOLERANCE)


def test_sentences_longer_than_77_tokens_are_cut_with_a_warning(imagebind, caplog):
    encoder = load_text_encoder(str(imagebind))
    long = "tumour " * 200
    with caplog.at_level("WARNING", "medad_core"):
        cut = encoder.encode([long, "a healthy brain"])
    assert "longer than the 77 tokens" in caplog.text
    torch.testing.assert_close(cut[:1], encoder.encode([" ".join(["tumour"] * 75)]))


def test_both_towers_of_one_folder_serve_as_encoder_and_text_encoder_of_one_width(imagebind):
    text = text_features(load_text_encoder(str(imagebind)), load_sentences())
    taps = load_encoder(str(imagebind)).encode(np.zeros((1, 240, 240), np.uint8))
    assert text.shape == (2, 32) and taps.shape == (1, 4, 16, 16, 64)


def test_the_record_holds_the_hash_of_source_and_files_and_precision_is_kept(imagebind, tiny):
    from safetensors import safe_open

    from medad_core.models.cache import RECORD, sha256_of

    record = json.loads((imagebind / RECORD).read_text())
    assert record["files"] == {file: sha256_of(imagebind / file) for file in record["files"]}
    assert record["source_sha256"] == sha256_of(tiny / "imagebind_tiny.pth") and "NC" in record["licence"]
    assert {path.name for path in imagebind.iterdir()} == {*record["files"], RECORD} and {
        path.stat().st_mode & 0o777 for path in imagebind.iterdir()
    } == {imagebind.stat().st_mode & 0o666}
    with safe_open(imagebind / "model.safetensors", framework="pt") as tensors:
        assert tensors.get_tensor("visual_projection.weight").dtype == torch.float16
        assert (
            tensors.get_tensor("vision_model.embeddings.patch_embedding.weight").dtype == torch.float32
        )  # a sum of two halves


def test_other_modalities_are_counted_and_left_out(tiny, tmp_path, state):
    made = import_imagebind(tiny / "imagebind_tiny.pth", tmp_path / "out")
    others = [name for name in state if name.split(".")[1] in ("audio", "depth", "thermal", "imu")]
    assert (made.tensors, made.ignored) == (len(state) - len(others), len(others)) == (147, 92)


def test_number_of_heads_changes_the_fingerprint(tiny, tmp_path, imagebind):
    import_imagebind(tiny / "imagebind_tiny.pth", tmp_path / "out", vision_heads=8)
    assert (
        encoder_fingerprint(str(tmp_path / "out"))["encoder_sha256"]
        != encoder_fingerprint(str(imagebind))["encoder_sha256"]
    )


def test_a_tensor_that_is_missing_or_unknown_or_of_another_shape_is_named(state, tmp_path):
    source, out = tmp_path / "x.pth", tmp_path / "out"
    without = {name: tensor for name, tensor in state.items() if name != TEXT_BLOCK + "1.mlp.fc1.bias"}
    refused(saved(without, source), out, "text_model.encoder.layers.1.mlp.fc1.bias is missing")
    gone = {name: tensor for name, tensor in state.items() if not name.startswith(VISION_BLOCK + "3.")}
    refused(saved(gone, source), out, "vision_model.encoder.layers.3", "and 11 more")
    refused(
        saved({**state, VISION_BLOCK + "0.attn.bias_k": torch.zeros(1, 1, 64)}, source),
        out,
        VISION_BLOCK + "0.attn.bias_k",
    )
    refused(
        saved({**state, "modality_trunks.touch.blocks.0.norm_1.bias": torch.zeros(2)}, source),
        out,
        "modality_trunks.touch",
    )
    refused(
        saved({**state, VISION_BLOCK + "7.norm_2.bias": torch.zeros(63)}, source),
        out,
        "vision_model.encoder.layers.7.layer_norm2.bias is (63,), not (64,)",
    )
    refused(saved({**state, VISION_BLOCK + "7.attn.in_proj_bias": torch.zeros(190)}, source), out, "self_attn")
    refused(saved({**state, "modality_heads.vision.2.weight": torch.zeros(32)}, source), out, "dimensions")
    refused(
        saved({**state, "modality_heads.vision.2.weight": torch.zeros(32, 64, dtype=torch.int32)}, source),
        out,
        "visual_projection.weight holds torch.int32",
    )
    refused(
        saved({**state, "modality_preprocessors.text.mask": torch.zeros(77, 77)}, source),
        out,
        "modality_preprocessors.text.mask",
    )
    refused(
        saved({**state, "modality_preprocessors.text.token_embedding.weight": torch.zeros(500, 32)}, source),
        out,
        "vocabulary has 500",
    )


@pytest.mark.parametrize(
    "name, tensor",
    {
        "modality_trunks.vision.blocks.0.attn.in_proj_bias": torch.zeros(2),
        "modality_heads.vision.0.bias": torch.tensor(0.0),
        "modality_trunks.text.blocks.0.attn.in_proj_weight": torch.tensor(0.0),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": torch.zeros(1, 1, 32),
        "modality_preprocessors.text.mask": torch.zeros(77),
        "modality_trunks.vision.blocks.0.norm_1.weight": torch.full((32,), torch.nan),
        "modality_trunks.vision.blocks.0.mlp.fc1.bias": torch.zeros(8).to_sparse(),
    }.items(),
)
def test_a_tensor_of_an_impossible_kind_is_one_line(state, tmp_path, name, tensor):
    assert name in state
    torch.save(state | {name: tensor}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth: not ImageBind"):
        import_imagebind(tmp_path / "odd.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_that_do_not_divide_the_width_are_refused(tiny, tmp_path):
    with pytest.raises(WeightsError, match="--text-heads"):
        import_imagebind(tiny / "imagebind_tiny.pth", tmp_path / "out", text_heads=5)


class _Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(state, tmp_path, zipped):
    fired, source = tmp_path / "fired", tmp_path / "x.pth"
    torch.save({**state, "modality_heads.vision.3": _Bomb(fired)}, source, _use_new_zipfile_serialization=zipped)
    refused(source, tmp_path / "out", "mkdir", "nothing in it was run")
    torch.load(source, weights_only=False)  # the same file does create it where it is loaded without care
    assert fired.is_dir()


def test_anything_else_than_a_dictionary_of_tensors_is_refused(state, tmp_path, tiny):
    source, out = tmp_path / "x.pth", tmp_path / "out"
    source.write_bytes(b"not a checkpoint at all")
    refused(source, out)
    source.write_bytes(b"")
    refused(source, out)
    source.write_bytes(pickle.dumps({"a": _Bomb(tmp_path / "fired")}, protocol=2))
    refused(source, out)
    whole = (tiny / "imagebind_tiny.pth").read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:length])
        refused(source, out, "cut short")
    refused(saved([1, 2], source), out, "something else than tensors")
    refused(saved({"state_dict": state}, source), out, "something else than tensors")
    refused(saved({"layer.weight": torch.zeros(2)}, source), out, "has no tensor")
    source.unlink()
    refused(source, out, error=UsageError)


def test_a_folder_that_is_there_is_not_overwritten(tiny, tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(UsageError, match="there already"):
        import_imagebind(tiny / "imagebind_tiny.pth", tmp_path / "kept")


def test_a_conversion_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("medad_core.imports.clip_tokenizer.DISTRIBUTION", "no-such-distribution")
    with pytest.raises(WeightsError, match="make setup"):
        import_imagebind(tiny / "imagebind_tiny.pth", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_converts_and_says_how_to_use_it(tiny, tmp_path, untouched):
    out = tmp_path / "models" / "imagebind-huge"
    result = CliRunner().invoke(
        app, ["models", "import", "imagebind", str(tiny / "imagebind_tiny.pth"), "--out", str(out)]
    )
    assert result.exit_code == 0 and "147 tensors" in result.stdout and f"models.encoder={out}" in result.stdout, (
        result.output
    )
    again = CliRunner().invoke(
        app, ["models", "import", "imagebind", str(tiny / "imagebind_tiny.pth"), "--out", str(out)]
    )
    assert again.exit_code == 2 and "there already" in again.stderr and "Traceback" not in again.output


@pytest.fixture
def pickled(tmp_path) -> tuple[Path, object]:
    """A small Llama as two shards of pickles, as hubs kept it.

    It has tied embeddings, an index, a tokenizer file, and a folder of another format.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
            tie_word_embeddings=True,
        )
    )
    folder = tmp_path / "small-llama"
    model.config.save_pretrained(folder)
    tensors = model.state_dict()
    shards = {f"pytorch_model-0000{part + 1}-of-00002.bin": dict(list(tensors.items())[part::2]) for part in (0, 1)}
    for shard, part in shards.items():
        torch.save(part, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    (folder / "tokenizer.model").write_bytes(b"tokenizer")
    return folder, model


def test_a_pickled_language_model_becomes_safetensors_with_the_same_logits(pickled, tmp_path):
    from medad_core.llm.engine import llm_fingerprint
    from medad_core.llm.transformers_engine import load_llm

    source, model = pickled
    with pytest.raises(WeightsError, match="pickles are not read"):
        llm_fingerprint(str(source))
    import_llm(source, tmp_path / "out")
    assert (
        not list((tmp_path / "out").glob("*.bin*"))
        and (tmp_path / "out" / "tokenizer.model").read_bytes() == b"tokenizer"
    )
    assert len(llm_fingerprint(str(tmp_path / "out"))["llm_sha256"].split(" config ")[0].split()) == 2
    tokens = torch.arange(12).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(load_llm(tmp_path / "out")(tokens).logits, model.eval()(tokens).logits)


def test_a_pickled_language_model_with_code_or_without_a_shard_is_refused(pickled, tmp_path):
    source, _ = pickled
    shard = source / "pytorch_model-00002-of-00002.bin"
    kept = shutil.copyfile(shard, tmp_path / "kept")
    torch.save({"model.norm.weight": _Bomb(tmp_path / "fired")}, shard)
    with pytest.raises(WeightsError, match="nothing in it was run"):
        import_llm(source, tmp_path / "out")
    shard.unlink()
    with pytest.raises(WeightsError, match=shard.name):
        import_llm(source, tmp_path / "out")
    torch.save({"other": torch.zeros(1)}, shard)
    with pytest.raises(WeightsError, match="than its index says"):
        import_llm(source, tmp_path / "out")
    shutil.copyfile(kept, shard)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../../elsewhere.bin"}}))
    with pytest.raises(WeightsError, match="lies elsewhere"):
        import_llm(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "fired").exists()


def test_a_small_file_that_speaks_of_gigabytes_is_refused_before_they_are_taken(tmp_path):
    old, spread = tmp_path / "old.pth", tmp_path / "spread.pth"
    torch.save({"a": torch.zeros(4)}, old, _use_new_zipfile_serialization=False)
    assert read_state(old, "weights")["a"].tolist() == [0, 0, 0, 0]
    storage = b"K\x04Nt"  # of the pickle: the storage has 4 numbers
    assert old.read_bytes().count(storage) == 1
    old.write_bytes(old.read_bytes().replace(storage, b"J" + (1_400_000_000).to_bytes(4, "little") + b"Nt"))
    torch.save({"a": torch.zeros(1).expand(1_400_000_000)}, spread)
    for path, said in ((old, "more numbers than it has bytes"), (spread, "more numbers than are stored")):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(WeightsError, match=said):
            read_state(path, "weights")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
