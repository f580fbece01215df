"""Settings of sentence-transformers' files: vectors equal to its own, or a refusal that names the setting."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import bertfast
from bertfast import ArgumentError, CheckpointError, Encoder, UnsupportedError
from harness import near

TEXTS = ["", "Call me Ishmael.", "whale " * 70, "床前明月光", "A [MASK] b"]
LIBRARY = "sentence_transformers"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{LIBRARY}.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{LIBRARY}.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{LIBRARY}.models.Normalize"},
]
NEW = [  # as version 6 writes them
    {**MODULES[0], "type": f"{LIBRARY}.base.modules.transformer.Transformer"},
    {**MODULES[1], "type": f"{LIBRARY}.sentence_transformer.modules.pooling.Pooling"},
    {**MODULES[2], "type": f"{LIBRARY}.base.modules.normalize.Normalize"},
]
PROMPTS = {"query": "find this: ", "long": "the sea, " * 30, "none": ""}
POOLING, OF_ALL, TEXT = (
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
BASE = {
    "modules.json": MODULES[:2],
    POOLING: {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    OF_ALL: {"prompts": PROMPTS},
    "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 64},
}


@pytest.fixture
def both(sentence_model):
    """Makes our encoder and two of sentence-transformers for a checkpoint with some files besides `BASE`: as it is, and
    in float64."""
    library = pytest.importorskip(LIBRARY, reason="sentence-transformers is not installed")

    def make(files: dict):
        folder = sentence_model({**BASE, **files})
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        return Encoder.from_pretrained(folder, device="cpu"), (
            theirs,
            copy.deepcopy(theirs).double(),
        )

    return make


def encoded(model, **options) -> torch.Tensor:
    return torch.from_numpy(model.encode(TEXTS, **options))


def same(ours, theirs, **options) -> None:
    """Both give the same vectors; `normalize` has another name there."""
    vectors = encoded(ours, **options)
    if "normalize" in options:
        options["normalize_embeddings"] = options.pop("normalize")
    eager, exact = (encoded(model, **options) for model in theirs)
    near("vectors", vectors, exact, eager)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"modules.json": NEW, POOLING: {"embedding_dimension": 32, "pooling_mode": "mean"}},
        {TEXT: {"max_seq_length": 9}},
        {TEXT: {"max_seq_length": None, "do_lower_case": True}},
        {
            TEXT: {"do_lower_case": True},
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        },
        {"sentence_roberta_config.json": {"max_seq_length": 7}},
        {OF_ALL: {"prompts": PROMPTS, "default_prompt_name": "query"}},
        {OF_ALL: {"default_prompt_name": "document"}},
        {OF_ALL: {"truncate_dim": 5, "similarity_fn_name": "dot"}},
        {OF_ALL: {"truncate_dim": 5}, "modules.json": MODULES},
        {OF_ALL: {"truncate_dim": 100, "model_type": "SentenceTransformer"}},
        {
            TEXT: {"max_seq_length": 9},
            "tokenizer_config.json": {
                "tokenizer_class": "BertTokenizer",
                "truncation_side": "left",
            },
        },
        {POOLING: {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}},
        {POOLING: {"word_embedding_dimension": 32, "pooling_mode": "max"}},
        {
            TEXT: {
                "transformer_task": "feature-extraction",
                "modality_config": {
                    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
                },
                "module_output_name": "token_embeddings",
                "unpad_inputs": False,
            }
        },
    ],
    ids=str,
)
def test_files_are_obeyed(both, files):
    ours, theirs = both(files)
    same(ours, theirs)
    assert ours.dimension == theirs[0].get_embedding_dimension()
    assert ours.max_length == theirs[0].max_seq_length


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_prompts(both, mode, side):
    """Left out of pooling or not, longer than a text may be or not."""
    for include in (True, False):
        ours, theirs = both(
            {
                POOLING: {
                    "pooling_mode": mode,
                    "embedding_dimension": 32,
                    "include_prompt": include,
                },
                "tokenizer_config.json": {
                    **BASE["tokenizer_config.json"],
                    "truncation_side": side,
                },
            }
        )
        same(ours, theirs)
        same(ours, theirs, prompt="find this: ")
        for name in (*PROMPTS, "document"):
            same(ours, theirs, prompt_name=name)
    shut, whole = ours.encode("a", prompt="find this: "), ours.encode("find this: a")
    assert (shut != whole).any()
    with pytest.raises(ArgumentError, match="prompt_name: expected one of .*long, none, got 'q'"):
        ours.encode("a", prompt_name="q")


def test_default_prompt_that_is_left_out(both):
    ours, theirs = both(
        {
            POOLING: {"pooling_mode": "mean", "embedding_dimension": 32, "include_prompt": False},
            OF_ALL: {"prompts": PROMPTS, "default_prompt_name": "query"},
        }
    )
    same(ours, theirs)
    same(ours, theirs, prompt="")


@pytest.mark.parametrize("modules", [MODULES, MODULES[:2]], ids=["scaled", "plain"])
@pytest.mark.parametrize("normalize", [None, True])
def test_truncate_dim(both, modules, normalize):
    ours, theirs = both({"modules.json": modules, OF_ALL: {"truncate_dim": 6}})
    options = {} if normalize is None else {"normalize": True}
    for dimension in (1, 4, 32, 99):
        same(ours, theirs, truncate_dim=dimension, **options)
    same(ours, theirs, **options)
    assert ours.encode([]).shape == (0, 6)
    assert ours.encode([], truncate_dim=9).shape == (0, 9)
    assert ours.encode("a", truncate_dim=4).shape == (4,)


REFUSED = [
    ({POOLING: {"pooling_mode": mode, "embedding_dimension": 32}}, mode)
    for mode in ("mean_sqrt_len_tokens", "weightedmean", "lasttoken")
]
REFUSED += [
    ({POOLING: {"pooling_mode": ["cls", "mean"], "embedding_dimension": 32}}, "cls + mean"),
    ({TEXT: {"model_args": {"attn_implementation": "eager"}}}, "model_args"),
    ({TEXT: {"tokenizer_args": {"truncation_side": "left"}}}, "tokenizer_args"),
    ({TEXT: {"document_length": 5}}, "document_length"),
    ({TEXT: {"processing_kwargs": {"text": {"max_length": 4}}}}, "processing_kwargs"),
]
UNKNOWN = [
    ({POOLING: {"pooling_mode_median": True}}, "pooling_mode_median = True"),
    ({OF_ALL: {"model_type": "SparseEncoder"}}, "model_type = 'SparseEncoder'"),
    ({OF_ALL: {"something_new": 1}}, "something_new = 1"),
    ({TEXT: {"transformer_task": "fill-mask"}}, "transformer_task = 'fill-mask'"),
    ({"modules.json": [MODULES[0], MODULES[2], MODULES[1]], "x": ""}, None),
    (
        {"modules.json": MODULES, "2_Normalize/config.json": {"module_input_name": "x"}},
        "module_input_name = 'x'",
    ),
    (
        {"modules.json": [{**MODULES[0], "type": "own.Transformer"}, MODULES[1]]},
        "the module Transformer is not supported as number 1 (own.Transformer)",
    ),
]


@pytest.mark.parametrize(("files", "words"), REFUSED + UNKNOWN, ids=str)
def test_others_are_refused_by_name(sentence_model, files, words):
    if words is None:  # the order of the numbers holds
        files = {
            "modules.json": [
                {**module, "idx": index} for index, module in enumerate(files["modules.json"])
            ]
        }
        words = "the module Normalize is not supported as number 2"
    with pytest.raises(UnsupportedError) as error:
        Encoder.from_pretrained(sentence_model({**BASE, **files}))
    assert words in str(error.value)
    assert "SentenceTransformer(path); bertfast.optimize(model)" in str(error.value)


@pytest.mark.parametrize(("files", "words"), REFUSED, ids=str)
def test_the_advice_works(sentence_model, files, words):
    """What is refused runs in sentence-transformers with our engine, with its numbers."""
    library = pytest.importorskip(LIBRARY, reason="sentence-transformers is not installed")
    path = str(sentence_model({**BASE, **files}))
    model = library.SentenceTransformer(path, device="cpu")
    eager, exact = encoded(model), encoded(copy.deepcopy(model).double())
    assert bertfast.optimize(model).switched
    with bertfast.dispatch.record() as log:
        near("vectors", encoded(model), exact, eager)
    assert {choice.backend for choice in log} == {"cpu"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({OF_ALL: {"prompts": ["a"]}}, "prompts: expected strings by name"),
        ({OF_ALL: {"prompts": {"a": 1}}}, "prompts: expected strings by name"),
        ({OF_ALL: {"default_prompt_name": 3}}, "default_prompt_name is 3"),
        ({OF_ALL: {"truncate_dim": 0}}, "truncate_dim: expected a positive number, got 0"),
        ({TEXT: {"max_seq_length": True}}, "max_seq_length: expected a positive number, got True"),
        ({POOLING: {"pooling_mode": 7}}, "pooling by 7"),
    ],
    ids=str,
)
def test_nonsense(sentence_model, files, message):
    with pytest.raises((CheckpointError, UnsupportedError)) as error:
        Encoder.from_pretrained(sentence_model({**BASE, **files}))
    assert message in str(error.value)


def test_a_model_that_only_transformers_runs(tiny):
    """The refusal of a live model names its reason and the same way out."""
    model = bertfast.BertModel.from_pretrained(tiny)
    model.encoder.layer[0].register_forward_hook(lambda *call: None)
    encoder = Encoder.from_pretrained(tiny)
    with pytest.raises(UnsupportedError, match=r"hook.*bertfast.optimize\(model\)"):
        Encoder(model, encoder.tokenizer)


def test_configuration_as_sentence_transformers_saves_it(both, tmp_path):
    ours, theirs = both({"modules.json": MODULES, TEXT: {"max_seq_length": 11}})
    theirs[0].save(str(tmp_path / "saved"))
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(encoded(again), encoded(ours))
    assert again.max_length == 11
    assert json.loads((tmp_path / "saved" / OF_ALL).read_text())["similarity_fn_name"] == "cosine"
