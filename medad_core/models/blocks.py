"""The blocks of a frozen vision transformer, rebuilt for inference.

One decision: precision is a matter of weights, not of a context. Matrix products run in the type of their weights
(float32, bfloat16 or float16); everything that adds up or normalises (residuals, LayerNorm, softmax) is float32. That
is what autocast does, without casting every weight at every call and every activation three times for q, k and v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.errors import WeightsError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Block(nn.Module):
    """One pre-norm block of `transformers` (DINOv2, CLIP and their like).

    q, k and v are one product, and layer scales are folded into the weights before them. It computes the same function
    as the block it is made of, up to rounding.
    """

    def __init__(self, block: nn.Module) -> None:
        """Raises WeightsError for a block of another layout."""
        super().__init__()
        attention = _part(block, "attention", "self_attn")
        self.mlp = _part(block, "mlp")
        self.norm1 = _part(block, "norm1", "layer_norm1")
        self.norm2 = _part(block, "norm2", "layer_norm2")
        self.qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.projection = _part(attention, "o_proj", "out_proj")
        self.head_width = attention.head_dim
        _fold(getattr(block, "layer_scale1", None), self.projection)
        _fold(getattr(block, "layer_scale2", None), _part(self.mlp, "fc2", "down_proj"))

    def forward(self, hidden: Tensor, *_args, **_kwargs) -> Tensor:
        """Hidden states (B, tokens, width) float32 to those after the block, same shape and dtype."""
        heads = self.qkv(self._cast(self.norm1(hidden))).unflatten(-1, (3, -1, self.head_width))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + self.projection(mixed)
        return hidden + self.mlp(self._cast(self.norm2(hidden)))

    def _cast(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.qkv.weight.dtype)


def cast_products(model: nn.Module, precision: str) -> nn.Module:
    """Keep the weights of all matrix products of `model` in `precision`; the others stay as they are, float32."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(PRECISIONS[precision])
    return model


def _part(module: nn.Module, *names: str) -> nn.Module:
    """The submodule of the first name that `module` has."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise WeightsError(
        f"{type(module).__name__} has no {' or '.join(names)}: blocks of this architecture are not supported"
    )


def _joined(*layers: nn.Linear) -> nn.Linear:
    """Linear layers of one input as one layer.

    A missing bias counts as zero: some CLIP variants have that of q and v.
    """
    first = layers[0]
    width = sum(layer.out_features for layer in layers)
    whole = nn.Linear(first.in_features, width, device=first.weight.device, dtype=first.weight.dtype)
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.data for layer in layers]
    whole.weight.data = torch.cat([layer.weight.data for layer in layers])
    whole.bias.data = torch.cat(biases)
    return whole.requires_grad_(False)


def _fold(scale: nn.Module | None, layer: nn.Linear) -> None:
    """Fold a layer scale s into the layer before it: diag(s)(Wx + b) = (diag(s)W)x + diag(s)b."""
    if scale is None:
        return
    layer.weight.data = layer.weight.data * scale.lambda1.data[:, None]
    if layer.bias is not None:
        layer.bias.data = layer.bias.data * scale.lambda1.data
