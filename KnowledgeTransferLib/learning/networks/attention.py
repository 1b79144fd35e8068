"""Attention: transformer blocks over tokens, in operations that export at any size and repeat bit for bit on CUDA."""

from __future__ import annotations

import torch
from torch import nn


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) within sets of tokens `(..., T, width)`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens `(..., T, width)`; `bias` `(heads, T, T)` is added to the scores, `hidden` `(..., T, T)` shut out."""
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (part.transpose(-3, -2) for part in parts.unbind(-3))
        scores = (query * self.scale) @ key.transpose(-1, -2)
        scores = scores if bias is None else scores + bias
        scores = scores if hidden is None else scores.masked_fill(hidden.unsqueeze(-3), float("-inf"))
        found = scores.softmax(-1) @ value
        return self.out(found.transpose(-3, -2).reshape(x.shape))


class TransformerBlock(nn.Module):
    """Attention, then a perceptron for each token; both behind a layer norm, and added to what came in."""

    def __init__(self, width: int, attention: nn.Module):
        from monai.networks.blocks import MLPBlock

        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention, self.perceptron = attention, MLPBlock(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `(..., width)` in the shape that the attention takes."""
        x = x + self.attention(self.norms[0](x))
        return x + self.perceptron(self.norms[1](x))
