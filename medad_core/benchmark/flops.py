"""Floating-point operations of a vision transformer, from its sizes.

A multiplication and the addition after it count as two. With N tokens of width D (P patches of p × p pixels in three
channels, and the class token), an MLP of width M and L blocks, one slice costs

    patch embedding   2 P · 3p² · D
    each block        q, k, v: 6 N D²; scores and mixing: 4 N² D; projection: 2 N D²; MLP: 4 N D M (gated: 6 N D M)

Normalisation, softmax, GELU and the bilinear resizing are left out, as is usual: they are no matrix products. A test
holds the formula against `torch.utils.flop_counter`, which counts the products that are run.
"""

from __future__ import annotations

from dataclasses import dataclass

from medad_core.models.encoder import VisionTransformerEncoder


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision transformer that its cost depends on; `mlp_products` is 2, or 3 where the MLP is gated."""

    depth: int
    width: int
    mlp_width: int
    mlp_products: int
    patch_size: int
    patches: int
    class_tokens: int


def shape_of(encoder: VisionTransformerEncoder) -> Shape:
    """The sizes of a loaded encoder."""
    blocks = encoder.blocks
    widths = [layer.weight.shape[0] for name, layer in blocks[0].mlp.named_children() if name in ("fc1", "gate_proj")]
    return Shape(
        depth=len(blocks),
        width=encoder.width,
        mlp_width=widths[0],
        mlp_products=3 if hasattr(blocks[0].mlp, "gate_proj") else 2,
        patch_size=encoder.model.config.patch_size,
        patches=encoder.grid**2,
        class_tokens=encoder.family.class_tokens,
    )


def flops_per_slice(shape: Shape) -> int:
    """Floating-point operations of one slice."""
    tokens = shape.patches + shape.class_tokens
    width = shape.width
    embedding = 2 * shape.patches * 3 * shape.patch_size**2 * width
    attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    mlp = 2 * shape.mlp_products * tokens * width * shape.mlp_width
    return embedding + shape.depth * (attention + mlp)
