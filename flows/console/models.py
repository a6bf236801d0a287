"""`medad models`: what can be named, and checkpoints of other projects made into folders that can be named.

One decision: an importer is one command of `import` here and one module of `medad_core.models.imports`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console.command import command, consoles, exits, group

models = group()
importing = group(no_args_is_help=True, help="Convert a checkpoint of another project into a folder that can be named.")
models.add_typer(importing, name="import")
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write; must not exist yet.")]


@models.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    """List the models that can be named, where they come from, and what is installed."""
    if context.invoked_subcommand is None:
        exits(_list)()


def _list() -> None:
    from flows.console.inventory import embedded_weights, packaged_models
    from flows.console.tables import models_table, terminal

    console = terminal()
    console.print(models_table((m.name, m.role, m.distribution, m.licence, m.source is not None, m.converted) for m in packaged_models()))
    console.print(f"weights 'embedded' (decoder and converter for these three): {embedded_weights() or 'not there'}", soft_wrap=True)
    console.print(
        "Others: models.encoder takes a local transformers folder of a DINOv2 or CLIP vision model, models.text_encoder one of a BERT sentence encoder, "
        "llm.model one of a Llama model; models.weights then names a folder that `medad train` made for them.",
    )


@command(importing)
def imagebind(checkpoint: Annotated[Path, typer.Argument(metavar="PATH", help="imagebind_huge.pth, as its authors publish it.")], out: Out) -> None:
    """Convert ImageBind's vision and text towers (CC BY-NC-SA 4.0) into a CLIP folder."""
    stdout, stderr = consoles()
    with stderr.status(f"converting {checkpoint.name}"):
        from medad_core.models.imports.imagebind import import_imagebind

        made = import_imagebind(checkpoint, out)
    stdout.print(f"{made.tensors} tensors of vision and text converted, {made.ignored} of other modalities left out: {out}", soft_wrap=True)
    stdout.print(f"use it with models.encoder={out} models.text_encoder={out}", soft_wrap=True)
