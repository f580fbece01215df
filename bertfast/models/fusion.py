"""The fusion pattern: which of transformers' modules fused operations may replace, asked on every call.

The result is a view of the weights (`core/weights.py`), or the reason why transformers' own forward has to run. A
module that is replaced by one that is Linear-like and that nobody observes (LoRA, a quantized Linear, pruning, a
parametrization) stands in the view itself and is called. Anything else that is not as transformers made it (a hook, a
patched forward, another class, a tensor of an unknown kind) is a reason.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.checkpoint import checkpoint
from transformers import activations
from transformers.models.bert import modeling_bert as theirs

from .. import dispatch
from ..core.weights import BertWeights, EmbeddingWeights, LayerWeights, Linear, Norm
from ..ops._quantized import QuantizedParameter
from ..ops._weights import PrepackedParameter
from . import snapshot

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_PLAIN = frozenset((nn.Parameter, Tensor, PrepackedParameter, QuantizedParameter))
Kinds = Container[type]
# Packages whose layers compute each row from that row alone, in the place of a Linear, LayerNorm or Embedding.
_ROW_BY_ROW = (
    *("aqlm", "auto_gptq", "awq", "bitsandbytes", "compressed_tensors", "eetq", "gptqmodel"),
    *("hqq", "optimum", "peft", "quanto", "torchao"),
)
_ROWS = frozenset(  # modules of torch and transformers that may stand inside such a layer
    (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.Identity, nn.Tanh, theirs.BertPooler)
) | {nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}
_WEIGHT_HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)  # they make a weight of others
_SELF_ATTENTION = (theirs.BertSelfAttention, getattr(theirs, "BertSdpaSelfAttention", None))
_ELEMENTWISE = ("transformers.activations", "torch.nn.modules.activation")
_NOT_ELEMENTWISE = (  # of that module; PReLU may hold a number a feature
    *(nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.GLU, nn.MultiheadAttention),
    nn.PReLU,
)
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")
_FORWARDS = {  # what fused operations stand in for, as it was when this module was imported
    kind: kind.forward
    for kind in (
        *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.Tanh, activations.GELUActivation),
        *(theirs.BertEmbeddings, theirs.BertEncoder, theirs.BertPooler, theirs.BertAttention),
        *(theirs.BertSelfOutput, theirs.BertIntermediate, theirs.BertOutput, theirs.BertLayer),
        *(theirs.BertPredictionHeadTransform, theirs.BertLMPredictionHead),
        *(kind for kind in _SELF_ATTENTION if kind is not None),
    )
}
_PARTS = ("attention.self", "attention.output", "intermediate")
PLACES = (  # of the first fields of LayerWeights
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"),
    *("output.dense", "output.LayerNorm"),
)


class _Any:
    """Every type: what a sharded layer holds before its own call is not what it computes with."""

    def __contains__(self, kind: type) -> bool:
        return True


_ANY = _Any()


class Unfit(Exception):
    """The reason why transformers' forward has to run."""


def view(model: nn.Module, layer_class: type[nn.Module]) -> BertWeights | str:
    """The weights of a transformers `BertModel` in the state that they have now, or the reason why there is no view.

    Args:
        layer_class: a BertLayer that can be entered by its own call with a packed stream; others are only looked into.
    """
    try:
        _check_surroundings(model)
        weights = snapshot.known(model)
        if weights is None:
            weights = _model(model, layer_class)
            snapshot.keep(model, weights)
        return weights
    except Unfit as unfit:
        return str(unfit)


def tell(weights: BertWeights) -> None:
    """Write into every open `dispatch.record()` which modules are called in the place of fused operations."""
    if torch.compiler.is_compiling() or not dispatch.scope().logs:
        return
    parts = {"embeddings.word_embeddings": weights.embeddings.word, "pooler": weights.pooler}
    for index, layer in enumerate(weights.layers):
        if isinstance(layer, LayerWeights):
            parts |= {f"encoder.layer.{index}.{n}": p for n, p in zip(PLACES, layer, strict=False)}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            reason = f"it is a {_full_name(type(part))}"
            dispatch.note(name, "forward", "modules", {"fused": reason})


def layer_view(layer: nn.Module) -> LayerWeights:
    """The weights of one BertLayer. Raises Unfit."""
    return _layer(layer, None, "")


def reason_of(module: nn.Module, name: str) -> str | None:
    """Why a module may not be left out or given rows instead of a batch, or None: a hook, or a replaced forward."""
    held = module.__dict__
    if _is_plain(held):
        return None
    if not all(map(_inactive, _hooks(module))):
        kinds = " and ".join(k.strip("_").replace("_", " ") for k in _HOOKS if held[k])
        return f"{name} has {kinds}"
    if "forward" in held:
        return f"{name} has a forward of its own"
    if held.get("_compiled_call_impl") is not None:
        return f"{name} is compiled by itself"
    return None


def reason_of_all() -> str | None:
    """A hook for all modules (torch 2.6 has no function that tells)."""
    if any(getattr(torch_module, f"_global{kind}") for kind in _HOOKS):
        return "a hook is registered for all modules"
    return None


def plain_linear(module: nn.Module) -> Linear | None:
    """The weights of a torch Linear that nobody changed or observes; None for any other module."""
    if type(module) is not nn.Linear or not _is_plain(module.__dict__):
        return None
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    return Linear(weight, bias) if type(weight) in _PLAIN else None


def leaf(
    kind: type[nn.Module], parent: nn.Module, name: str, dtype: torch.dtype | None, where: str, kinds: Kinds = _PLAIN
) -> Linear | Norm | Any:  # fmt: skip
    """The weights of a Linear or LayerNorm, or what stands in its place. Raises Unfit.

    Args:
        dtype: that its weight must have; None: any. where: what stands before the name in a reason.
    """
    module = parent._modules.get(name)
    if type(module) is kind and _is_plain(module.__dict__):
        held = module._parameters
        weight, bias = held.get("weight"), held.get("bias")
        if type(weight) in kinds and type(bias) in kinds:
            _check_dtype(weight, dtype, where, name)
            return Linear(weight, bias) if kind is nn.Linear else Norm(weight, bias, module.eps)
    return _stand_in(module, kind, f"{where}{name}", kinds)


linear = functools.partial(leaf, nn.Linear)
norm = functools.partial(leaf, nn.LayerNorm)


def dropout(module: nn.Module | None, name: str) -> float:
    """The probability in force. Raises Unfit."""
    exact(module, (nn.Dropout, nn.Identity), name)
    return module.p if type(module) is nn.Dropout and module.training else 0.0


def activation(module: Any, name: str) -> Any:
    """None for gelu by erf, which is fused; else the function. Raises Unfit."""
    kind = type(module)
    if kind is activations.GELUActivation and module.act is nn.functional.gelu:
        fused = True
    elif kind is nn.GELU:
        fused = module.approximate == "none"
    else:
        fused = module is nn.functional.gelu
    if isinstance(module, nn.Module):
        if reason := reason_of(module, name):
            raise Unfit(reason)
        known = kind.__module__.startswith(_ELEMENTWISE) and kind not in _NOT_ELEMENTWISE
        if not fused and not known:
            raise Unfit(f"{name} is a {kind.__name__}")
    elif not fused:
        raise Unfit(f"{name} is a function")
    return None if fused else module


def exact(module: nn.Module | None, kind: type | tuple, name: str) -> nn.Module:
    """The module, if it is of this very class (or one of these) and nobody observes it. Raises Unfit."""
    found = type(module)
    if found is not kind and not (isinstance(kind, tuple) and found in kind):
        raise Unfit(f"{name} is a {found.__name__}")
    if reason := reason_of(module, name):
        raise Unfit(reason)
    return module


def _model(model: nn.Module, layer_class: type[nn.Module]) -> BertWeights:
    modules = model._modules
    embeddings = _embeddings(exact(modules.get("embeddings"), theirs.BertEmbeddings, "embeddings"))
    encoder = exact(modules.get("encoder"), theirs.BertEncoder, "encoder")
    dtype, layers, views, drops = embeddings.position.dtype, [], [], embeddings.dropout > 0
    found = exact(encoder._modules.get("layer"), nn.ModuleList, "encoder.layer")
    for index, layer in enumerate(found):
        name = f"encoder.layer.{index}"
        sharded, saves = _how_entered(layer, layer_class, name)
        kinds, own = (_ANY, None) if sharded else (_PLAIN, dtype)
        weights = _layer(layer, own, f"{name}.", kinds)
        drops = drops or any(weights[-3:])  # the probabilities
        layers.append(layer if sharded or saves else weights)
        views += [weights] * (saves and not sharded and _recomputes(layer))
    checkpointed = views if len(views) == len(layers) else ()
    return BertWeights(embeddings, layers, _pooler(modules.get("pooler")), drops, checkpointed)


def _pooler(pooler: nn.Module | None) -> Linear | Any:
    """Its product; the whole module where that or itself was replaced; None without one."""
    if pooler is None:
        return None
    if type(pooler) is not theirs.BertPooler:
        return _stand_in(pooler, theirs.BertPooler, "pooler")
    exact(pooler, theirs.BertPooler, "pooler")
    exact(pooler._modules.get("activation"), nn.Tanh, "pooler.activation")
    dense = linear(pooler, "dense", None, "pooler.")
    return dense if isinstance(dense, Linear) else pooler


def _check_surroundings(model: nn.Module) -> None:
    """The configuration, and what holds for all modules."""
    if reason := reason_of_all():
        raise Unfit(reason)
    for kind, forward in _FORWARDS.items():
        if kind.forward is not forward:
            raise Unfit(f"{kind.__name__}.forward was patched")
    held = model.config.__dict__
    if held.get("is_decoder") or held.get("add_cross_attention"):
        raise Unfit("it is a decoder")
    if held.get("is_causal"):
        raise Unfit("config.is_causal is set")
    asked = held.get("_attn_implementation_internal", held.get("_attn_implementation"))
    if asked is not None and asked not in _ATTENTION:
        raise Unfit(f"attn_implementation is {asked!r}")


def _embeddings(module: nn.Module) -> EmbeddingWeights:
    modules, name = module._modules, "embeddings."
    if module.__dict__.get("position_embedding_type", "absolute") != "absolute":
        raise Unfit("positions are relative")
    tables = []
    for part in ("position_embeddings", "token_type_embeddings"):
        table = exact(modules.get(part), nn.Embedding, f"{name}{part}")
        weight = table._parameters.get("weight")
        if type(weight) not in _PLAIN or _looks_up_oddly(table):
            raise Unfit(f"{name}{part} is no plain table")
        tables.append(weight)
    if tables[0].is_meta:
        raise Unfit("the model is on the meta device")
    if not snapshot.has_default_buffers(module):
        raise Unfit(f"{name}position_ids or token_type_ids were changed")
    dtype = tables[0].dtype
    table, padding = modules.get("word_embeddings"), -1
    if type(table) is nn.Embedding and _is_plain(table.__dict__) and not _looks_up_oddly(table):
        padding = -1 if table.padding_idx is None else table.padding_idx
        word = table._parameters.get("weight")
        if type(word) not in _PLAIN:
            raise Unfit(f"{name}word_embeddings.weight is a {type(word).__name__}")
        _check_dtype(word, dtype, name, "word_embeddings")
    else:
        word = _stand_in(table, nn.Embedding, f"{name}word_embeddings")
    last = norm(module, "LayerNorm", dtype, name)
    if not isinstance(last, Norm):
        raise Unfit(f"{name}LayerNorm is a {type(last).__name__}")
    p = dropout(modules.get("dropout"), f"{name}dropout")
    return EmbeddingWeights(word, *tables, last, p, padding)


def _layer(
    layer: nn.Module, dtype: torch.dtype | None, where: str, kinds: Kinds = _PLAIN
) -> LayerWeights:
    """`kinds`: the types that a fused operation's tensors may have."""
    modules = layer._modules
    attention = exact(modules.get("attention"), theirs.BertAttention, f"{where}attention")
    attend = exact(attention._modules.get("self"), _SELF_ATTENTION, f"{where}attention.self")
    end = exact(attention._modules.get("output"), theirs.BertSelfOutput, f"{where}attention.output")
    middle = exact(modules.get("intermediate"), theirs.BertIntermediate, f"{where}intermediate")
    output = exact(modules.get("output"), theirs.BertOutput, f"{where}output")
    inside, after, before = (f"{where}{part}." for part in _PARTS)
    heads, size = attend.num_attention_heads, attend.attention_head_size
    query = linear(attend, "query", dtype, inside, kinds)
    if getattr(attend, "scaling", size**-0.5) != size**-0.5:
        raise Unfit(f"{inside}scaling is {attend.scaling}")
    fused = isinstance(query, Linear)
    rows = query.weight.shape[0] if fused else getattr(query, "out_features", None)
    if rows != heads * size:
        raise Unfit(f"{inside}query has {rows} outputs for {heads} heads of {size}")
    return LayerWeights(
        query,
        linear(attend, "key", dtype, inside, kinds),
        linear(attend, "value", dtype, inside, kinds),
        linear(end, "dense", dtype, after, kinds),
        norm(end, "LayerNorm", dtype, after, kinds),
        linear(middle, "dense", dtype, before, kinds),
        linear(output, "dense", dtype, f"{where}output.", kinds),
        norm(output, "LayerNorm", dtype, f"{where}output.", kinds),
        heads,
        activation(middle.intermediate_act_fn, f"{before}intermediate_act_fn"),
        dropout(attend._modules.get("dropout"), f"{inside}dropout"),
        dropout(end._modules.get("dropout"), f"{after}dropout"),
        dropout(output._modules.get("dropout"), f"{where}output.dropout"),
    )


def _how_entered(layer: nn.Module, layer_class: type[nn.Module], name: str) -> tuple[bool, bool]:
    """Whether a layer works by its own call: (taken by FSDP, checkpointed). Raises Unfit for what is unknown."""
    kind = type(layer)
    sharded = kind is not layer_class and isinstance(layer, layer_class) and _is_sharded(layer)
    if not sharded:
        exact(layer, (layer_class, theirs.BertLayer), name)
    saves = layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()
    if saves and kind is theirs.BertLayer:
        raise Unfit(f"{name} is transformers' own and checkpointed")
    return sharded, saves


def _recomputes(layer: nn.Module) -> bool:
    """Whether gradient checkpointing of the layer is torch's own, without what a caller adds."""
    how = layer.__dict__.get("_gradient_checkpointing_func")
    return (
        isinstance(how, functools.partial)
        and how.func is checkpoint
        and how.keywords.keys() <= {"use_reentrant", "preserve_rng_state"}
    )


def _is_sharded(layer: nn.Module) -> bool:
    """Whether FSDP2's fully_shard took the layer, and nobody else observes it."""
    if not any(base.__name__ == "FSDPModule" for base in type(layer).__mro__):
        return False
    owners = (type(getattr(hook, "__self__", None)).__name__ for hook in _hooks(layer))
    return all(name == "FSDPState" for name in owners)


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for kind in _HOOKS for hook in module.__dict__[kind].values()]


def _is_plain(held: dict[str, Any]) -> bool:
    """Whether nothing observes the module with this dictionary."""
    return not (
        held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held["_backward_pre_hooks"]
        or "forward" in held
        or held.get("_compiled_call_impl") is not None
    )


def _check_dtype(weight: Tensor, dtype: torch.dtype | None, where: str, name: str) -> None:
    if dtype is not None and weight.dtype is not dtype:
        raise Unfit(f"{where}{name} is in {weight.dtype}, the embeddings in {dtype}")


def _looks_up_oddly(module: nn.Embedding) -> bool:
    return module.max_norm is not None or module.sparse or module.scale_grad_by_freq


def _stand_in(
    module: nn.Module | None, kind: type[nn.Module], name: str, kinds: Kinds = _PLAIN
) -> nn.Module:
    """A module to be called with rows [1,T,·] in the place of one of `kind`. Raises Unfit."""
    found = type(module)
    own = found.forward is kind.forward if isinstance(module, kind) else False
    if not own and not _from_row_by_row_library(found):
        raise Unfit(f"{name} is a {found.__name__}")
    for inner in _inside(module):
        if not (type(inner) in _ROWS or inner is module or _from_row_by_row_library(type(inner))):
            raise Unfit(f"{name} holds a {type(inner).__name__}")
        if "forward" in inner.__dict__ or not all(map(_may_see_rows, _hooks(inner))):
            raise Unfit(reason_of(inner, name) or f"{name} is observed")
    for tensor in module.parameters():
        if type(tensor) not in kinds and not _from_row_by_row_library(type(tensor)):
            raise Unfit(f"{name}.weight is a {type(tensor).__name__}")
    return module


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """The module and those in it that see its rows; parametrizations see weights."""
    yield module
    for child in module.children():
        if not isinstance(child, parametrize.ParametrizationList):
            yield from _inside(child)


@functools.cache
def _from_row_by_row_library(kind: type) -> bool:
    place = kind.__module__
    integrated = place.startswith(("torch.ao.", "transformers.integrations."))
    return integrated or place.partition(".")[0] in _ROW_BY_ROW


def _full_name(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "torch" else f"{kind.__name__} of {package}"


def _inactive(hook: Any) -> bool:
    """A hook by which transformers 5 collects outputs, while nobody collects."""
    module = getattr(hook, "__module__", None)
    if module != "transformers.utils.output_capturing":
        return False
    from transformers.utils.output_capturing import _active_collector

    return _active_collector.get() is None


def _may_see_rows(hook: Any) -> bool:
    """A hook that only makes a weight, or that marks the output of the word embeddings as needing a gradient."""
    name = getattr(hook, "__name__", "")
    return isinstance(hook, _WEIGHT_HOOKS) or "make_inputs_require_grad" in name
