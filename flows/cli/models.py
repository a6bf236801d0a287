"""`medad models`: what can be named, and checkpoints of other projects made into folders that can be named.

One decision: an importer is one command of `import` here and one module of `medad_core.imports`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import command, consoles, exits, group

models_app = group()
importing = group(no_args_is_help=True, help="Convert a checkpoint of another project into a folder that can be named.")
models_app.add_typer(importing, name="import")
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write; must not exist yet.")]


@models_app.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    """List the models that can be named, where they come from, and what is installed."""
    if context.invoked_subcommand is None:
        exits(_list)()


def _list() -> None:
    from flows.cli.inventory import embedded_weights, known_presets, packaged_models
    from flows.cli.tables import models_table, presets_table
    from flows.cli.terminal import terminal

    console = terminal()
    console.print(models_table(packaged_models()))
    console.print(presets_table(known_presets()))
    weights = embedded_weights() or "not there"
    console.print(f"weights 'embedded' (decoder and converter for the first three): {weights}", soft_wrap=True)
    console.print(
        "Others: models.encoder takes a local transformers folder of a DINOv2, CLIP or SigLIP vision model, "
        "models.text_encoder one of a BERT sentence encoder or of CLIP's or SigLIP's text model, llm.model one of a "
        "causal LM (Llama, Mistral, Qwen, Gemma, Phi, GPT-2, …); models.weights then names a folder that `medad train` "
        "made for them.",
    )


@command(importing)
def imagebind(
    checkpoint: Annotated[Path, typer.Argument(metavar="PATH", help="imagebind_huge.pth, as its authors publish it.")],
    out: Out,
    vision_heads: Annotated[
        int, typer.Option("--vision-heads", min=1, help="Attention heads, which the file does not say.")
    ] = 16,
    text_heads: Annotated[int, typer.Option("--text-heads", min=1)] = 16,
) -> None:
    """Convert ImageBind's vision and text towers (CC BY-NC-SA 4.0) into a CLIP folder."""
    stdout, stderr = consoles()
    with stderr.status(f"converting {checkpoint.name}"):
        from medad_core.imports.imagebind import import_imagebind

        made = import_imagebind(checkpoint, out, vision_heads, text_heads)
    stdout.print(
        f"{made.tensors} tensors of vision and text converted, {made.ignored} of other modalities left out: {out}",
        soft_wrap=True,
    )
    stdout.print(f"use it with models.encoder={out} models.text_encoder={out}", soft_wrap=True)


@command(importing)
def llm(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Downloaded model with pytorch_model*.bin, such as lmsys/vicuna-7b-v1.5."
        ),
    ],
    out: Out,
) -> None:
    """Convert a language model that is published as pickles into safetensors; nothing in them is run."""
    stdout, stderr = consoles()
    with stderr.status(f"converting {source.name}"):
        from medad_core.imports.llm import import_llm

        import_llm(source, out)
    stdout.print(f"use it with llm.model={out}", soft_wrap=True)


@command(importing)
def anomalygpt(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT", help="PandaGPT's delta first, then AnomalyGPT's pytorch_model.pt."),
    ],
    out: Out,
    encoder: Annotated[
        str, typer.Option("--encoder", help="Image encoder it was trained on (ImageBind), by name or folder.")
    ] = "imagebind-huge",
    text_encoder: Annotated[
        str, typer.Option("--text-encoder", help="Text encoder it was trained on (ImageBind's), by name or folder.")
    ] = "imagebind-huge",
    llm: Annotated[str, typer.Option("--llm", help="LLM it was trained on (Vicuna), by name or folder.")] = "vicuna-7b",
    thing: Annotated[
        str, typer.Option("--thing", help="What its sentences speak of: 'a photo of a damaged THING.'")
    ] = "object",
    lora_alpha: Annotated[
        float, typer.Option("--lora-alpha", min=0, help="Of the LoRA, which no checkpoint says.")
    ] = 32.0,
    models: Annotated[
        str | None, typer.Option("--models", metavar="FOLDER", help="Folder of presets; else $MEDAD_MODELS.")
    ] = None,
) -> None:
    """Convert AnomalyGPT's decoder, prompt learner and LoRA into a weights folder for `models.weights`."""
    stdout, stderr = consoles()
    with stderr.status("converting"):
        from medad_core.config import ModelSettings
        from medad_core.imports.anomalygpt import import_anomalygpt

        named = {"encoder": encoder, "text_encoder": text_encoder, "llm": llm}
        made = import_anomalygpt(
            checkpoints, out, **named, thing=thing, lora_alpha=lora_alpha, where=ModelSettings(folder=models)
        )
    stdout.print(f"weights and card: {made.folder}", soft_wrap=True)
    stdout.print(f"use them with: medad screen DATA --out RUN {' '.join(made.settings)}", soft_wrap=True)
