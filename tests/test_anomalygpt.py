"""AnomalyGPT checkpoints: a small one against plain torch written from the paper.

It has random weights in the exact layout of the real ones.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prefect_harness import weights_for
from safetensors.torch import load_file

from medad_core.config import Settings, load_settings
from medad_core.data.phantom import generate_cohort
from medad_core.errors import UsageError, WeightsError
from medad_core.imports.anomalygpt import Imported, import_anomalygpt
from medad_core.llm import lora as lora_module
from medad_core.llm.engine import llm_folder
from medad_core.llm.grammar import NO, QUESTION, Answer, parse, yes
from medad_core.llm.lora import save_lora
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.decoder import render_maps
from medad_core.models.pack import packaged
from medad_core.models.text import load_text_encoder
from medad_core.models.view import View
from medad_core.models.weights import CONVERTER, converter_facts, load_converter
from medad_core.run.cohort import settle_cohort
from medad_core.run.fingerprints import converter_surroundings, maps_fingerprint, prompts_fingerprint
from medad_core.run.gather import find_cohort
from medad_core.run.run import Run
from medad_core.stages import answers, maps, prompts, slices
from medad_core.stages.loading import load_converter_of, load_map_models, load_prompt_of
from medad_core.stages.rows import embeddings_of, grids_of, images_of, tokens_of
from medad_core.store import stage_of

WIDTH, JOINT, TEXT, LLM = 32, 48, 384, 64
CONVOLUTIONS = {0: (1, 4), 3: (4, 16), 6: (16, 64), 9: (64, 256), 12: (256, 1024)}
RANK, ALPHA = 4, 8.0


def checkpoint_tensors() -> dict[str, torch.Tensor]:
    """What AnomalyGPT saves: its decoder and prompt learner. Layers are scaled so that maps and tokens vary."""
    torch.manual_seed(1)
    state = {}
    for tap in range(4):
        state[f"image_decoder.fc.{tap}.weight"], state[f"image_decoder.fc.{tap}.bias"] = (
            torch.randn(TEXT, WIDTH),
            torch.randn(TEXT),
        )
    state["prompt_learner.base_prompts"] = torch.randn(9, LLM)
    for number, (inward, outward) in CONVOLUTIONS.items():
        state[f"prompt_learner.meta_net.{number}.weight"] = (
            torch.randn(outward, inward, 3, 3) * (2 / (9 * inward)) ** 0.5
        )
        state[f"prompt_learner.meta_net.{number}.bias"] = torch.randn(outward) * 0.1
    state["prompt_learner.meta_net.15.weight"], state["prompt_learner.meta_net.15.bias"] = (
        torch.randn(LLM, 1024, 5, 5) / 160,
        torch.randn(LLM) * 0.1,
    )
    return state


def delta_tensors() -> dict[str, torch.Tensor]:
    """What PandaGPT saves: the projection of the image into the LLM, and LoRA for its attention."""
    torch.manual_seed(2)
    state = {"llama_proj.weight": torch.randn(LLM, JOINT), "llama_proj.bias": torch.randn(LLM)}
    for layer in range(2):
        for part in "qkvo":
            name = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{part}_proj"
            state[f"{name}.lora_A.default.weight"], state[f"{name}.lora_B.default.weight"] = (
                torch.randn(RANK, LLM) / 8,
                torch.randn(LLM, RANK) / 8,
            )
    return state


@dataclass(frozen=True)
class Kit:
    """A tiny CLIP, a tiny Llama without chat template, and checkpoints for them."""

    folder: Path

    @property
    def clip(self) -> str:
        return str(self.folder / "clip")

    @property
    def llama(self) -> str:
        return str(self.folder / "llama")

    @property
    def files(self) -> list[Path]:
        return [self.folder / "pandagpt.pt", self.folder / "anomalygpt.pt"]

    def run(self, out: Path, files: list[Path] | None = None, **changes) -> Imported:
        named = {"encoder": self.clip, "text_encoder": "minilm", "llm": self.llama, "lora_alpha": ALPHA} | changes
        return import_anomalygpt(files or self.files, out, **named)

    def refused(self, tmp_path: Path, change, problem: str) -> None:
        """Import a checkpoint that `change` has been at; nothing may be written."""
        state = checkpoint_tensors() | delta_tensors()
        change(state)
        torch.save(state, tmp_path / "changed.pt")
        with pytest.raises(WeightsError, match=problem):
            self.run(tmp_path / "out", [tmp_path / "changed.pt"])
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("anomalygpt")
    torch.manual_seed(0)
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 14,
    }
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=JOINT)).save_pretrained(
        folder / "clip"
    )
    tokenizer = AutoTokenizer.from_pretrained(packaged("smollm2-135m").folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "llama")
    config = LlamaConfig(
        hidden_size=LLM,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.normal_()
    model.save_pretrained(folder / "llama")
    torch.save(
        {name: torch.nn.Parameter(tensor) for name, tensor in checkpoint_tensors().items()}, folder / "anomalygpt.pt"
    )
    torch.save(delta_tensors(), folder / "pandagpt.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_module, "cache_root", lambda: folder / "cache")
        yield Kit(folder)


@pytest.fixture(scope="module")
def imported(kit):
    return kit.run(kit.folder / "weights")


@pytest.fixture(scope="module")
def settings(imported) -> Settings:
    return load_settings(
        None,
        [
            *imported.settings,
            "models.device=cpu",
            "llm.engine=transformers",
            "llm.max_new_tokens=60",  # its tokenizer knows few words
            "data.first_slice=80",
            "data.last_slice=82",
        ],
    )


def reference_texts() -> torch.Tensor:
    """(2, TEXT): 7 normal × 2 and 5 abnormal × 2 sentences about an object, averaged and normalised."""
    states = [
        [
            "{}",
            "flawless {}",
            "perfect {}",
            "unblemished {}",
            "{} without flaw",
            "{} without defect",
            "{} without damage",
        ]
    ]
    states.append(["damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"])
    encoder, rows = load_text_encoder("minilm"), []
    for kind in states:
        sentences = [f"a photo of {article} {state.format('object')}." for state in kind for article in ("a", "the")]
        mean = encoder.encode(sentences).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def reference_map(clip: str, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 1, 224, 224) from prepared pictures (B, 3, 224, 224)."""
    from transformers import CLIPVisionModel

    state, texts, drawn = checkpoint_tensors(), reference_texts(), []
    hidden = CLIPVisionModel.from_pretrained(clip)(pixel_values=pixels, output_hidden_states=True).hidden_states
    for tap, block in enumerate((2, 4, 6, 8)):
        patches = (
            hidden[block][:, 1:] @ state[f"image_decoder.fc.{tap}.weight"].T + state[f"image_decoder.fc.{tap}.bias"]
        )
        logits = 100 * (patches / patches.norm(dim=-1, keepdim=True)) @ texts.T
        logits = logits.transpose(1, 2).reshape(len(pixels), 2, 16, 16)
        drawn.append(F.interpolate(logits, size=224, mode="bilinear", align_corners=True).softmax(1)[:, 1])
    return torch.stack(drawn).mean(0).unsqueeze(1)


def reference_map_tokens(anomaly_map: torch.Tensor) -> torch.Tensor:
    """(B, 9, LLM) from maps (B, 1, 224, 224)."""
    state, seen = checkpoint_tensors(), anomaly_map
    for number in CONVOLUTIONS:
        seen = F.max_pool2d(
            F.conv2d(
                seen,
                state[f"prompt_learner.meta_net.{number}.weight"],
                state[f"prompt_learner.meta_net.{number}.bias"],
                padding=1,
            ).relu(),
            2,
        )
    seen = F.conv2d(seen, state["prompt_learner.meta_net.15.weight"], state["prompt_learner.meta_net.15.bias"])
    assert seen.shape[1:] == (LLM, 3, 3)
    return torch.stack([seen[:, :, row, column] for row in range(3) for column in range(3)], dim=1)


def reference_image_token(clip: str, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 1, LLM)."""
    from transformers import CLIPModel

    state, model = delta_tensors(), CLIPModel.from_pretrained(clip)
    last = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    embedding = model.visual_projection(model.vision_model.post_layernorm(last[:, 0]))
    return (
        embedding / embedding.norm(dim=-1, keepdim=True) @ state["llama_proj.weight"].T + state["llama_proj.bias"]
    ).unsqueeze(1)


@torch.no_grad()
def reference_prompt(kit: Kit, pixels: torch.Tensor) -> torch.Tensor:
    """(B, L, LLM): ### Human: <Img>{image}</Img> {9 base}{9 map}{question}\n### Assistant:, after the start token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(kit.llama)
    table = load_file(Path(kit.llama) / "model.safetensors")["model.embed_tokens.weight"]

    def words(text: str) -> torch.Tensor:
        return table[tokenizer(text, add_special_tokens=False).input_ids].expand(len(pixels), -1, -1)

    start = table[tokenizer.bos_token_id].expand(len(pixels), 1, -1)
    base = checkpoint_tensors()["prompt_learner.base_prompts"].expand(len(pixels), -1, -1)
    soft = reference_map_tokens(reference_map(kit.clip, pixels))
    return torch.cat(
        [
            start,
            words("### Human: <Img>"),
            reference_image_token(kit.clip, pixels),
            words("</Img> "),
            base,
            soft,
            words(f"{QUESTION}\n### Assistant:"),
        ],
        dim=1,
    )


def reference_llm(kit: Kit) -> torch.nn.Module:
    """The Llama with W + (alpha / r) · B A in its attention."""
    model, delta = load_llm(Path(kit.llama)), delta_tensors()
    for name, parameter in model.named_parameters():
        stem = f"llama_model.base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.default.weight" in delta:
            product = delta[f"{stem}.lora_B.default.weight"] @ delta[f"{stem}.lora_A.default.weight"]
            parameter.add_(ALPHA / RANK * product)
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two pictures with something in them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (2, 240, 240), np.uint8)
    images[0, 60:120, 90:160], images[1, 150:200, 20:70] = 230, 200
    return images


@torch.inference_mode()
def test_map_and_tokens_are_those_of_the_paper(kit, settings, pictures):
    models, converter = load_map_models(settings), load_converter_of(settings)
    pixels = models.encoder.prepare(pictures)
    features, embedding = models.encode(pictures)
    grid = models.decoder(features)
    expected = reference_map(kit.clip, pixels)
    assert expected.std() > 0.01 and (expected[0] - expected[1]).abs().max() > 0.01, (
        "the test would not notice a map that is constant"
    )
    torch.testing.assert_close(render_maps(grid, 224, 224), expected[:, 0], atol=1e-4, rtol=1e-3)
    tokens = converter(grid, None, embedding)
    assert tokens.shape == (2, 10, LLM) and converter.knowledge_tokens().shape == (9, LLM)
    torch.testing.assert_close(tokens[:, 1:], reference_map_tokens(expected), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(tokens[:, :1], reference_image_token(kit.clip, pixels), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(converter.knowledge_tokens(), checkpoint_tensors()["prompt_learner.base_prompts"])


def test_weights_say_what_they_are_and_refuse_other_models(kit, imported, settings):
    facts = converter_facts(imported.folder)
    assert (facts.architecture, facts.template, facts.joint) == ("anomalygpt", "anomalygpt", JOINT)
    assert maps_fingerprint(settings)["embedding"] == f"joint space, {JOINT} wide"
    with pytest.raises(WeightsError, match=r"llm_sha256 is .* made for .* with LoRA"):
        prompts_fingerprint(settings.model_copy(update={"llm": settings.llm.model_copy(update={"lora": None})}))
    with pytest.raises(WeightsError, match="encoder_sha256"):
        maps_fingerprint(
            settings.model_copy(update={"models": settings.models.model_copy(update={"encoder": "dinov2-small"})})
        )
    assert "AnomalyGPT" in (imported.folder / "card.md").read_text()


@pytest.fixture(scope="module")
def screened(kit, settings) -> str:
    """A run through all four stages on a phantom of three slices."""
    run = str(kit.folder / "run")
    generate_cohort(kit.folder / "phantoms", 1, 0)
    settle_cohort(run, find_cohort(str(kit.folder / "phantoms"), settings.data))
    for name, stage in (("slices", slices), ("maps", maps), ("prompts", prompts), ("answers", answers)):
        opened = Run.reopen(run, settings)
        stage.plan(opened)
        stage.run_parts(opened, opened.stage(name).pending())
        opened.stage(name).finish()
    return run


@torch.no_grad()
def test_a_screened_phantom_is_answered_as_plain_torch_answers_it(kit, settings, screened):
    images = images_of(stage_of(screened, "slices").read())
    pixels = load_map_models(settings).encoder.prepare(images)
    prompt = load_prompt_of(settings)
    soft = tokens_of(stage_of(screened, "prompts").read())
    assert soft.shape == (3, 10, LLM)
    assembled = torch.from_numpy(prompt.assemble(load_converter_of(settings).knowledge_tokens().numpy(), soft))
    expected = reference_prompt(kit, pixels)
    assert assembled.shape[1] == prompt.length(9, 9)
    torch.testing.assert_close(
        assembled, expected, atol=0.03, rtol=0.01
    )  # grids, embeddings and tokens are kept in half precision

    model, tokenizer = reference_llm(kit), prompt.tokenizer
    logits = model(inputs_embeds=assembled).logits[:, -1]
    tokens = model.generate(
        inputs_embeds=assembled, attention_mask=torch.ones(assembled.shape[:2]), max_new_tokens=60, do_sample=False
    )
    answers = stage_of(screened, "answers").read()
    assert answers["answer"].to_pylist() == tokenizer.batch_decode(tokens, skip_special_tokens=True)
    yes_token, no_token = (
        tokenizer(text, add_special_tokens=False).input_ids[0] for text in ("Yes, there", "No, there")
    )
    np.testing.assert_allclose(
        answers["p_yes"].to_numpy(), (logits[:, yes_token] - logits[:, no_token]).sigmoid().numpy(), atol=1e-4
    )
    plain = load_llm(Path(kit.llama))(inputs_embeds=assembled).logits[:, -1]
    assert (plain - logits).abs().max() > 0.01, "the test would not notice a LoRA that is left out"


def test_maps_carry_the_embedding_only_where_the_weights_ask_for_it(screened, settings, kit, tmp_path):
    table = stage_of(screened, "maps").read()
    embeddings = embeddings_of(table).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=2e-3)
    assert grids_of(table).shape == (3, 4, 16, 16)
    plain = weights_for(tmp_path / "weights", View())
    words = [f"models.weights={plain}", "models.device=cpu", "data.first_slice=80", "data.last_slice=80"]
    default = load_settings(None, words)
    run = str(tmp_path / "run")
    shutil.copytree(Path(screened) / "slices", Path(run) / "slices")
    maps.plan(Run.reopen(run, default))
    maps.run_parts(Run.reopen(run, default), [0])
    assert embeddings_of(stage_of(run, "maps").read()) is None and "embedding" not in maps_fingerprint(default)


def test_an_encoder_without_joint_space_is_refused_before_any_work(kit, tmp_path):
    with pytest.raises(WeightsError, match="no joint space"):
        kit.run(tmp_path / "out", encoder="dinov2-small")
    vision_only = tmp_path / "vision"
    shutil.copytree(kit.clip, vision_only)
    state = load_file(vision_only / "model.safetensors")
    del state["visual_projection.weight"]
    from safetensors.torch import save_file

    save_file(state, vision_only / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="no joint space"):
        kit.run(tmp_path / "out", encoder=str(vision_only))


def test_missing_tensors_are_listed_and_the_delta_is_named(kit, tmp_path):
    kit.refused(tmp_path, lambda state: state.pop("image_decoder.fc.2.bias"), "missing: image_decoder.fc.2.bias")
    kit.refused(
        tmp_path, lambda state: state.pop("prompt_learner.base_prompts"), "missing: prompt_learner.base_prompts"
    )
    with pytest.raises(
        WeightsError, match=r"missing: llama_proj\.bias, llama_proj\.weight; llama_proj is in PandaGPT's delta"
    ):
        kit.run(tmp_path / "out", kit.files[1:])


@pytest.mark.parametrize(
    "name",
    [
        "image_decoder.fc.4.weight",
        "prompt_learner.meta_net.1.weight",
        "prompt_learner.extra",
        "optimizer.step",
        "llama_proj2.weight",
    ],
)
def test_unexpected_tensors_are_listed(kit, tmp_path, name):
    kit.refused(tmp_path, lambda state: state.update({name: torch.zeros(3)}), f"unexpected: {name}")


def test_frozen_models_in_a_checkpoint_are_left_out(kit, tmp_path):
    state = checkpoint_tensors() | delta_tensors()
    torch.save(
        state | {"visual_encoder.x": torch.zeros(1), "llama_model.base_model.model.lm_head.weight": torch.zeros(1)},
        tmp_path / "whole.pt",
    )
    assert kit.run(tmp_path / "out", [tmp_path / "whole.pt"]).folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("image_decoder.fc.1.weight", (TEXT, WIDTH + 8), r"image_decoder.fc.1.weight is \(384, 40\), not \(384, 32\)"),
        (
            "prompt_learner.meta_net.6.weight",
            (64, 16, 5, 5),
            r"meta_net.6.weight is \(64, 16, 5, 5\), not \(64, 16, 3, 3\)",
        ),
        ("prompt_learner.base_prompts", (18, LLM), r"base_prompts is \(18, 64\), not \(9, 64\)"),
        ("llama_proj.weight", (LLM, JOINT * 2), r"llama_proj.weight is \(64, 96\), not \(64, 48\)"),
    ],
)
def test_other_sizes_are_refused_by_name(kit, tmp_path, name, shape, problem):
    kit.refused(tmp_path, lambda state: state.update({name: torch.zeros(shape)}), problem)


def test_a_checkpoint_for_another_encoder_or_llm_is_refused(kit, tmp_path):
    with pytest.raises(WeightsError, match=r"LLM smollm2-135m \(576\).*base_prompts is \(9, 64\), not \(9, 576\)"):
        kit.run(tmp_path / "out", llm="smollm2-135m")


def test_not_a_number_is_refused(kit, tmp_path):
    kit.refused(tmp_path, lambda state: state["llama_proj.bias"].fill_(float("nan")), "not finite: llama_proj.bias")


def test_a_truncated_checkpoint_is_refused(kit, tmp_path):
    data = kit.files[1].read_bytes()
    for keep in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:keep])
        with pytest.raises(WeightsError, match=r"cut\.pt"):
            kit.run(tmp_path / "out", [kit.files[0], tmp_path / "cut.pt"])


class _Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(kit, tmp_path, legacy):
    trace = tmp_path / "executed"
    torch.save(
        checkpoint_tensors() | {"image_decoder.fc.0.bias": _Malicious(trace)},
        tmp_path / "bad.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(WeightsError, match=r"bad\.pt"):
        kit.run(tmp_path / "out", [kit.files[0], tmp_path / "bad.pt"])
    assert not trace.exists()


def test_weights_are_not_written_over(kit, imported):
    with pytest.raises(UsageError, match="is there already"):
        kit.run(imported.folder)


def test_a_converter_of_an_architecture_that_is_not_known_is_refused(settings, imported, tmp_path):
    from safetensors.torch import save_file

    save_file(
        load_file(imported.folder / CONVERTER),
        tmp_path / CONVERTER,
        metadata={"fits": "{}", "architecture": "transformer"},
    )
    with pytest.raises(WeightsError, match="architecture 'transformer'; known here: compact, anomalygpt"):
        load_converter(tmp_path, {})
    save_file(
        load_file(imported.folder / CONVERTER), tmp_path / CONVERTER, metadata={"fits": "{}", "architecture": "compact"}
    )
    with pytest.raises(WeightsError, match="not those of this architecture"):
        load_converter(tmp_path, converter_surroundings(settings))


def test_lora_of_another_model_is_refused(kit, tmp_path):
    save_lora(
        tmp_path,
        {
            f"base_model.model.model.layers.9.self_attn.q_proj.lora_{half}.weight": torch.zeros(shape)
            for half, shape in (("A", (2, LLM)), ("B", (LLM, 2)))
        },
        4,
    )
    with pytest.raises(WeightsError, match=r"layers\.9\.self_attn\.q_proj\.weight, which is absent"):
        llm_folder(kit.llama, str(tmp_path))


def test_a_halved_lora_is_refused(kit, tmp_path):
    state = delta_tensors()
    del state["llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    torch.save(state, tmp_path / "delta.pt")
    with pytest.raises(WeightsError, match="lora_B"):
        kit.run(tmp_path / "out", [tmp_path / "delta.pt", kit.files[1]])
    assert not (tmp_path / "out" / CONVERTER).exists()


def test_answers_end_where_anomalygpt_ends_them(kit):
    prompt = Prompt(Path(kit.llama), "anomalygpt")
    tokens = prompt.answer_tokens(yes("top"))
    assert prompt.tokenizer.decode(tokens) == f"{yes('top')}\n###"
    text, ended, count = prompt.read_answer([*tokens, 5, 6])
    assert (text, ended) == (yes("top"), True) and count <= len(tokens)
    assert prompt.read_answer(tokens[:4])[1] is False
    assert prompt.read_answer([*prompt.tokenizer.encode(NO), prompt.tokenizer.eos_token_id])[:2] == (NO, True)


def test_an_llm_without_chat_template_speaks_anomalygpts(kit):
    assert Prompt(Path(kit.llama)).template.name == "anomalygpt"
    with pytest.raises(WeightsError, match=r"no chat template; set llm\.template=anomalygpt"):
        Prompt(Path(kit.llama), "chat")
    with pytest.raises(WeightsError, match="no place for the image's embedding"):
        Prompt(llm_folder("smollm2-135m"), "chat", image=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, there is an anomaly in the image, at the bottom left of the image.", Answer("yes", "bottom left")),
        ("No, there is no anomaly in the image.\n", Answer("no", None)),
        ("Yes, there are 2 anomalies in the image, they are at the top of the image.", Answer("yes", "top")),
        (
            "Yes, there are 2 anomalies in the image, they are at the top left and bottom of the image.",
            Answer("yes", None),
        ),
        ("Yes, there are 3 anomalies in the image, they are at the top, left", None),
        ("Yes, there is an anomaly in the image.", None),
    ],
)
def test_anomalygpts_own_sentences_are_read(text, answer):
    assert parse(text) == answer


def test_the_command_imports_and_says_how_to_go_on(kit, tmp_path):
    from typer.testing import CliRunner

    from flows.cli.app import app

    named = ["--encoder", kit.clip, "--text-encoder", "minilm", "--llm", kit.llama, "--lora-alpha", str(ALPHA)]
    result = CliRunner().invoke(
        app, ["models", "import", "anomalygpt", *map(str, kit.files), "--out", str(tmp_path / "weights"), *named]
    )
    assert result.exit_code == 0, result.output
    assert f"llm.lora={tmp_path / 'weights' / 'lora'}" in result.stdout
    words = result.stdout.split("--out RUN ")[1].split()
    assert maps_fingerprint(load_settings(None, words)) and prompts_fingerprint(load_settings(None, words))


def test_the_architecture_can_be_trained_in_its_template(kit, tmp_path):
    """A few steps through the tiny LLM: the loss reaches every parameter, and the file says what it holds."""
    from test_training import drawn_maps

    from medad_core.config.train import ConverterTraining
    from medad_core.models.converter import new_converter
    from medad_core.models.weights import save_converter
    from medad_core.training.converter import ConverterTrainer

    examples = drawn_maps(6)
    prompt, before = Prompt(Path(kit.llama)), new_converter("anomalygpt", torch.zeros(0, TEXT), LLM, 0.1)
    start = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    training = ConverterTraining(
        architecture="anomalygpt", warm_up_steps=1, synthetic_steps=1, real_steps=1, batch_size=2, checkpoint_every=2
    )
    trained = ConverterTrainer(before, load_llm(prompt.folder), prompt, training, seed=0).fit(
        examples, examples, tmp_path / "c.pt"
    )
    assert all((trained.state_dict()[name] != tensor).any() for name, tensor in start.items())
    save_converter(trained, tmp_path, {}, prompt.template.name)
    assert (
        converter_facts(tmp_path) == converter_facts(tmp_path / CONVERTER) and converter_facts(tmp_path).joint is None
    )
    assert load_converter(tmp_path, {})(torch.from_numpy(examples.grids)).shape == (6, 9, LLM)
