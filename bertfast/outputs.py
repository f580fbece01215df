"""What a model returns: an ordered dict that is also read by attribute and, like a tuple, by position."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(OrderedDict):
    """Named results in a fixed order, used as transformers' ``ModelOutput`` is.

    A subclass declares its fields by annotations alone, in order; it needs no decorator and no values::

        class TokenClassifierOutput(ModelOutput):
            loss: Tensor | None
            logits: Tensor

    ``out["logits"]``, ``out.logits``, ``out[1]``, ``out[:2]`` and ``out.to_tuple()`` all read one storage, the dict.
    A field that is None is absent from keys, positions and iteration, and reads as None by attribute. It is built
    from keywords, from a mapping or from (name, value) pairs, given in field order, and is a pytree node.

    Raises:
        KeyError: a name that is not a field is set, or an absent one is read by name.
    """

    _fields: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._fields += tuple(
            name for name in inspect.get_annotations(cls) if name not in cls._fields
        )
        pytree.register_pytree_node(
            cls,
            lambda out: (list(out.values()), list(out)),
            lambda values, names: cls(zip(names, values)),  # noqa: B905 (torch passes both, of one length)
            flatten_with_keys_fn=lambda out: (
                [(pytree.MappingKey(name), value) for name, value in out.items()],
                list(out),
            ),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    # torch.compile of torch 2.6 makes only dict subclasses that keep dict's own __init__ (and calls it, hence
    # __setitem__, at run time); later ones trace an __init__, and would store None without this one.
    if torch.__version__ >= "2.7":

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            for name, value in dict(*args, **kwargs).items():
                self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._fields:
            raise KeyError(
                f"{type(self).__name__} has the fields {', '.join(self._fields)}, not {key!r}"
            )
        if value is not None:
            super().__setitem__(key, value)
        elif key in self:
            super().__delitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in type(self)._fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self)._fields:
            self[name] = value
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())


class BaseModelOutputWithPooling(ModelOutput):
    """What `BertModel` returns (transformers: ``BaseModelOutputWithPoolingAndCrossAttentions``).

    Fields:
        last_hidden_state: [B,S,H]; padded positions are zeros.
        pooler_output: [B,H], the pooler over each sequence's first real token; None without a pooling layer.
        hidden_states: L+1 tensors [B,S,H], the embeddings and every layer's output; only when asked for.
        past_key_values, cache (its name since transformers 5.24): always None, bertfast has no decoder.
        attentions: L tensors [B,heads,S,S] of probabilities; only when asked for.
        cross_attentions: always None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    past_key_values: None
    cache: None
    attentions: tuple[Tensor, ...] | None
    cross_attentions: None


class MaskedLMOutput(ModelOutput):
    """What `BertForMaskedLM` returns.

    Fields:
        loss: [] in fp32, only with labels.
        logits: [B,S,V], zeros at padding; without labels, or with output_logits=True.
        hidden_states, attentions: as in `BaseModelOutputWithPooling`.
    """

    loss: Tensor | None
    logits: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class BertForPreTrainingOutput(ModelOutput):
    """What `BertForPreTraining` returns.

    Fields:
        loss: [] in fp32, the sum of both losses, only with labels and next_sentence_label.
        prediction_logits: [B,S,V], zeros at padding; without a loss, or with output_logits=True.
        seq_relationship_logits: [B,2].
        hidden_states, attentions: as in `BaseModelOutputWithPooling`.
    """

    loss: Tensor | None
    prediction_logits: Tensor | None
    seq_relationship_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class SequenceClassifierOutput(ModelOutput):
    """What `BertForSequenceClassification` returns.

    Fields:
        loss: [] in fp32, only with labels.
        logits: [B, labels].
        hidden_states, attentions: as in `BaseModelOutputWithPooling`.
    """

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class NextSentencePredictorOutput(SequenceClassifierOutput):
    """What `BertForNextSentencePrediction` returns: the fields of `SequenceClassifierOutput`, logits [B,2]."""


class MultipleChoiceModelOutput(SequenceClassifierOutput):
    """What `BertForMultipleChoice` returns: the fields of `SequenceClassifierOutput`, logits [B, choices]."""


class TokenClassifierOutput(SequenceClassifierOutput):
    """What `BertForTokenClassification` returns: the fields of `SequenceClassifierOutput`, logits [B, S, labels]."""


class QuestionAnsweringModelOutput(ModelOutput):
    """What `BertForQuestionAnswering` returns.

    Fields:
        loss: [] in fp32, only with start_positions and end_positions.
        start_logits, end_logits: [B,S]; the dtype's lowest value at padding, so that no answer starts or ends there.
        hidden_states, attentions: as in `BaseModelOutputWithPooling`.
    """

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
