"""A vocabulary of another size: rows added to or taken from the end of the word embeddings and of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError

_SPREAD = 1e-9  # of the old rows' covariance, around their mean: transformers' value


def new_size(old: int, asked: int | None, multiple: int | None) -> int:
    """The number of rows that `resize_token_embeddings(asked, multiple)` means.

    Raises:
        ArgumentError: one of them is no positive integer.
    """
    for name, value in (("new_num_tokens", asked), ("pad_to_multiple_of", multiple)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value > 0):
            raise ArgumentError(name, "None or a positive integer", repr(value))
    count = old if asked is None else asked
    return count if multiple is None else -(-count // multiple) * multiple


@torch.no_grad()
def resize(
    words: nn.Embedding, decoder: nn.Linear | None, count: int, mean_resizing: bool, std: float
) -> None:
    """Give `words`, and `decoder` if there is one, `count` rows; parameters stay the same objects, tied ones tied.

    New rows of weights are drawn around the mean of the old ones, or from N(0, std²) without mean_resizing. A new bias
    is the mean of the old ones; 0 where the decoder is tied or mean_resizing is off.
    """
    missing = max(count - len(words.weight), 0)
    tied = decoder is not None and decoder.weight is words.weight
    for weight in (words.weight,) if decoder is None or tied else (words.weight, decoder.weight):
        rows = _rows_near(weight, missing) if mean_resizing else _rows_anew(weight, missing, std)
        _set(weight, torch.cat([weight[:count], rows.to(weight.dtype)]))
    words.num_embeddings = count
    if words.padding_idx is not None and words.padding_idx >= count:
        words.padding_idx = None
    if decoder is not None:
        decoder.out_features = count
        bias = decoder.bias
        level = bias.float().mean() if mean_resizing and not tied else 0.0
        _set(bias, torch.cat([bias[:count], bias.new_zeros(missing) + level]).to(bias.dtype))


def _set(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data, parameter.grad = value, None


def _rows_anew(weight: Tensor, count: int, std: float) -> Tensor:
    return weight.new_empty(count, weight.shape[1]).normal_(0.0, std)


def _rows_near(weight: Tensor, count: int) -> Tensor:
    if count == 0:
        return weight[:0]
    old = weight.float()
    mean = old.mean(0)
    centred = old - mean
    factor, failed = torch.linalg.cholesky_ex(_SPREAD * (centred.t() @ centred) / len(old))
    noise = torch.randn(count, len(mean), device=old.device) @ factor.t()
    return mean + torch.where(failed == 0, noise, 0.0)  # fewer words than features: the mean itself
