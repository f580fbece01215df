"""dropout(LN(word[id] + position[p] + segment[s])) in plain torch: the definition."""

from .._formulas import layer_norm, layer_norm_gradients, rounded, statistics_dtype, upcast
from .._formulas import supports as supports
from .._philox import dropout, hidden_keep


def forward(
    input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment, ln_weight, ln_bias, eps, p, seed,
    cu_seqlens, example_ids, padding_idx, save,
):  # fmt: skip
    z = _sum(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment)
    keep = hidden_keep(seed, p, cu_seqlens, *z.shape, example_ids) if p > 0 else None
    out, mean, rstd = layer_norm(z, *upcast(ln_weight, ln_bias), eps)
    return dropout(out, p, keep).to(position.dtype), mean, rstd


def backward(
    dout, input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment, ln_weight, mean, rstd, p,
    seed, cu_seqlens, example_ids, padding_idx, needs,
):  # fmt: skip
    z = _sum(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment)
    keep = hidden_keep(seed, p, cu_seqlens, *z.shape, example_ids) if p > 0 else None
    dout, ln_weight_fp32 = upcast(dout, ln_weight)
    dz, dln_weight, dln_bias = layer_norm_gradients(
        dropout(dout, p, keep), z, mean, rstd, ln_weight_fp32
    )
    dword = _scatter(dz, input_ids, word) if needs[0] and word is not None else None
    if dword is not None and padding_idx >= 0:
        dword[padding_idx] = 0
    dposition = _scatter(dz, position_ids, position) if needs[2] else None
    dsegment = _scatter(dz, token_type_ids, segment) if needs[3] else None
    dinputs_embeds = dz if inputs_embeds is not None else None
    return rounded(
        (dword, dinputs_embeds, dposition, dsegment, dln_weight, dln_bias), position.dtype
    )


def _sum(input_ids, word, inputs_embeds, position_ids, position, token_type_ids, segment):
    rows = inputs_embeds if input_ids is None else word[input_ids]
    rows, positions, segments = upcast(rows, position[position_ids], segment[token_type_ids])
    return rows + positions + segments


def _scatter(rows, indices, table):
    rows = rows.to(statistics_dtype(rows.dtype))
    return rows.new_zeros(table.shape).index_add_(0, indices, rows)
