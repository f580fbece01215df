"""The operations that a BERT encoder is made of: one contract each, several backends that compute the same thing."""

from .attention import attention
from .embedding import embedding
from .gelu_layernorm import gelu_layernorm
from .linear_gelu import linear_gelu
from .linear_layernorm import linear_layernorm
from .masked_cross_entropy import masked_cross_entropy
from .qkv_projection import qkv_projection

__all__ = [
    "attention",
    "embedding",
    "gelu_layernorm",
    "linear_gelu",
    "linear_layernorm",
    "masked_cross_entropy",
    "qkv_projection",
]
