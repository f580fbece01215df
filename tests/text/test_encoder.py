"""The encoder: vectors equal to sentence-transformers', whatever they are encoded with."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModel, AutoTokenizer

import bertfast
from bertfast import ArgumentError, CheckpointError, Encoder, UnsupportedError, use_backend
from bertfast.cli import main
from bertfast.inference.devices import default_device
from bertfast.inference.encoder import batches
from bertfast.text.pooling import pool
from harness import near

MODULE = "bertfast.inference.encoder"
TEXTS = [
    "",
    "Call me Ishmael.",
    "床前明月光，疑是地上霜。",
    "It is a way I have of driving off the spleen and regulating the circulation.",
    "whale " * 70,
    "a",
    "The forests are natural reservoirs.",
]
MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def states_of(tiny, dtype=torch.float32) -> list[list[torch.Tensor]]:
    """Transformers' last hidden state of each text, encoded alone: in float64, and in the dtype of its weights."""
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny)
    model = model.to(dtype)
    options = {"truncation": True, "max_length": 64, "return_tensors": "pt"}
    given = [tokenizer([text], **options) for text in TEXTS]
    with torch.no_grad():
        return [
            [made(**one).last_hidden_state[0] for one in given]
            for made in (copy.deepcopy(model).double(), model)
        ]


@pytest.fixture(scope="module")
def states(tiny) -> list[list[torch.Tensor]]:
    return states_of(tiny)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_equal_to_transformers(states, encoder, pooling, normalize):
    functions = {"cls": lambda x: x[0], "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}
    expected = [torch.stack([functions[pooling](x) for x in rows]) for rows in states]
    if normalize:
        expected = [torch.nn.functional.normalize(vectors) for vectors in expected]
    vectors = encoder.encode(TEXTS, pooling=pooling, normalize=normalize)
    assert vectors.dtype == np.float32
    near("vectors", torch.from_numpy(vectors), *expected)


def test_equal_to_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu")
    eager = torch.from_numpy(theirs.encode(TEXTS))
    exact = torch.from_numpy(theirs.double().encode(TEXTS))
    encoder = Encoder.from_pretrained(minilm)
    assert (encoder.max_length, encoder.dimension) == (256, 384)
    vectors = encoder.encode(TEXTS)
    near("vectors", torch.from_numpy(vectors), exact, eager)
    with use_backend("reference"):
        near("reference", torch.from_numpy(encoder.encode(TEXTS)), exact, eager)


def test_shapes_and_kinds_of_input(encoder):
    vectors = encoder.encode(TEXTS)
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.encode([]).dtype == np.float32
    assert encoder.encode("a").shape == (32,)
    assert (encoder.encode(TEXTS[5]) == vectors[5]).all()
    for texts in (tuple(TEXTS), (text for text in TEXTS), np.array(TEXTS), iter(TEXTS)):
        assert (encoder.encode(texts) == vectors).all()


def test_vectors_do_not_depend_on_the_batch(encoder):
    together = encoder.encode(TEXTS)
    for batch_tokens in (1, 20, 100, 10**9):
        assert (encoder.encode(TEXTS, batch_tokens) == together).all()
    assert (np.stack([encoder.encode(text) for text in TEXTS]) == together).all()
    assert (encoder.encode(TEXTS[::-1])[::-1] == together).all()


def test_windows_stream(encoder, monkeypatch):
    monkeypatch.setattr("bertfast.inference.encoder.WINDOW_TEXTS", 3)
    expected, taken = encoder.encode(TEXTS), 0

    def source():
        nonlocal taken
        for text in TEXTS:
            taken += 1
            yield text

    blocks = encoder.encode_iter(source())
    assert taken == 0
    first, vectors = next(blocks)
    assert (taken, first, vectors.shape) == (3, TEXTS[:3], (3, 32))
    rest = list(blocks)
    assert [text for texts, _ in rest for text in texts] == TEXTS[3:]
    assert (np.concatenate([vectors, *(block for _, block in rest)]) == expected).all()


def test_batches_hold_the_budget():
    lengths = [5, 100, 3, 40, 40, 7]
    found = list(batches(lengths, 80))
    assert found == [[1], [3, 4], [5, 0, 2]]
    assert list(batches([], 80)) == []


def test_truncation_is_reported_once(encoder, caplog, monkeypatch):
    monkeypatch.setattr("bertfast.inference.encoder.WINDOW_TEXTS", 2)
    with caplog.at_level(logging.WARNING, "bertfast"):
        cut = encoder.encode([*TEXTS, "sea " * 63, "sea " * 62])
    assert [record.getMessage() for record in caplog.records] == [
        "cut to 64 tokens: 2 of 9 texts were longer"
    ]
    assert (cut[4] == encoder.encode("whale " * 62)).all()
    caplog.clear()
    encoder.encode(TEXTS[:4])
    assert not caplog.records
    shorter = encoder.encode(TEXTS, max_length=4)
    assert (shorter[1] == encoder.encode("call me")).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "float64"])
def test_dtypes(tiny, dtype):
    vectors = Encoder.from_pretrained(tiny, dtype=dtype).encode(TEXTS)
    assert vectors.dtype == np.float32
    kept = getattr(torch, str(dtype).removeprefix("torch."))
    exact, eager = ([x.mean(0) for x in rows] for rows in states_of(tiny, kept))
    rounded = None if kept == torch.float64 else kept
    near("vectors", list(torch.from_numpy(vectors)), exact, [x.float() for x in eager], rounded)


def test_bfloat16_points_the_same_way(minilm):
    """The promise is a cosine of .9999 to float32 for every text."""
    texts = [text for text in TEXTS if text]
    wide, half = (
        torch.from_numpy(Encoder.from_pretrained(minilm, dtype=dtype).encode(texts)).double()
        for dtype in ("float32", "bfloat16")
    )
    assert torch.cosine_similarity(wide, half).min() >= 0.9999


def test_progress_bar(encoder, capsys):
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""
    encoder.encode(TEXTS, progress=True)
    assert "7/7" in capsys.readouterr().err


def test_threads_share_an_encoder(encoder):
    expected, found = encoder.encode(TEXTS), {}

    def work(index):
        found[index] = encoder.encode(TEXTS, max_length=None if index % 2 else 4)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[index] == expected).all() for index in (1, 3))
    assert (found[0] == found[2]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a", None]}, "texts[1]: expected a string, got NoneType"),
        ({"texts": [b"a"]}, "texts[0]: expected a string, got bytes"),
        ({"texts": b"a"}, "texts: expected an iterable of strings, got bytes"),
        ({"texts": 7}, "texts: expected an iterable of strings, got int"),
        ({"texts": ["a", "\udc00"]}, "texts[1]: expected Unicode text"),
        ({"pooling": "median"}, "pooling: expected one of cls, mean, max, got 'median'"),
        ({"batch_tokens": 0}, "batch_tokens: expected an integer at least 1, got 0"),
        ({"batch_tokens": 1.5}, "batch_tokens: expected an integer at least 1, got 1.5"),
        ({"max_length": 65}, "max_length: expected an integer from 3 to 64, got 65"),
        ({"max_length": 2}, "max_length: expected an integer from 3 to 64, got 2"),
        ({"prompt": 1}, "prompt: expected a string, got int"),
        ({"prompt_name": "q"}, "prompt_name: expected one of query, document, got 'q'"),
        ({"prompt_name": ["q"]}, "prompt_name: expected one of query, document, got ['q']"),
        ({"prompt_name": "query", "prompt": ""}, "prompt_name: expected none beside a prompt"),
        ({"truncate_dim": 0}, "truncate_dim: expected an integer at least 1, got 0"),
        ({"truncate_dim": True}, "truncate_dim: expected an integer at least 1, got True"),
    ],
    ids=str,
)
def test_bad_arguments(encoder, arguments, message):
    with pytest.raises(ArgumentError) as error:
        encoder.encode(**{"texts": ["a"], **arguments})
    assert message in str(error.value)


def test_index_counts_over_windows(encoder, monkeypatch):
    monkeypatch.setattr("bertfast.inference.encoder.WINDOW_TEXTS", 2)
    with pytest.raises(ArgumentError, match=r"texts\[5\]"):
        encoder.encode(["a"] * 5 + [None])


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_tokenizing_ahead_changes_nothing(encoder, monkeypatch, count):
    """As on a GPU: a thread makes the ids of the next window while this one is computed."""
    monkeypatch.setattr(f"{MODULE}.WINDOW_TEXTS", 3)
    expected, main, others = encoder.encode(TEXTS[:count]), threading.get_ident(), []
    before = threading.active_count()
    tokenize = Encoder._tokenize

    def watched(self, *arguments):
        others.append(threading.get_ident())
        return tokenize(self, *arguments)

    monkeypatch.setattr(Encoder, "_tokenize", watched)
    monkeypatch.setattr(f"{MODULE}.overlaps", lambda device: True)
    assert (encoder.encode(iter(TEXTS[:count])) == expected).all()
    assert main not in others
    with pytest.raises(ArgumentError, match=r"texts\[4\]: expected a string"):
        encoder.encode([*TEXTS[:4], 7])
    blocks = encoder.encode_iter(TEXTS)
    next(blocks)
    blocks.close()  # who has had enough leaves no thread behind
    assert threading.active_count() == before


def test_tokens_that_the_model_lacks(tiny, tmp_path):
    """Another model's vocabulary, or tokens that were added to the tokenizer alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[E1]": 30522}))
    encoder = Encoder.from_pretrained(folder)
    assert encoder.encode(["a", "b"]).shape == (2, 32)
    with pytest.raises(ArgumentError) as error:
        encoder.encode(["a", "b [E1]"])
    assert str(error.value).startswith(
        "texts[1]: expected tokens that the model has (30522), got '[E1]'"
    )
    assert "resize_token_embeddings" in str(error.value)


@pytest.mark.parametrize(
    ("sees", "cuda", "triton", "backend", "expected"),
    [
        (False, None, None, "auto", "cpu"),
        (True, None, "no compiler", "auto", "cuda:1"),
        (True, "no kernels", None, "auto", "cuda:1"),
        (True, "no kernels", "no compiler", "auto", "cpu"),
        (True, None, None, "cpu", "cpu"),
    ],
)
def test_default_device(monkeypatch, sees, cuda, triton, backend, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr("bertfast.extension.refuses_cuda", lambda like: cuda)
    monkeypatch.setattr("bertfast.inference.devices.triton_cannot_run", lambda: triton)
    with use_backend(backend):
        assert default_device() == torch.device(expected)


def test_the_default_device_is_taken(tiny, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.default_device", lambda: torch.device("meta"))
    assert Encoder.from_pretrained(tiny).device.type == "meta"
    assert Encoder.from_pretrained(tiny, device="cpu").device.type == "cpu"


# sentence-transformers' configuration


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"word_embedding_dimension": 32}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"], "include_prompt": True}, "max"),
    ],
    ids=str,
)
def test_pooling_configurations(sentence_model, encoder, config, pooling):
    folder = sentence_model({"modules.json": MODULES[:2], "1_Pooling/config.json": config})
    found = Encoder.from_pretrained(folder)
    assert (found.recipe.pooling, found.recipe.normalize) == (pooling, False)
    assert (found.encode(TEXTS) == encoder.encode(TEXTS, pooling=pooling)).all()


def test_all_that_sentence_transformers_says(sentence_model, encoder):
    files = {
        "modules.json": MODULES[::-1],
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": "find: "},
            "default_prompt_name": "query",
        },
        "tokenizer_config.json": {"do_lower_case": False},
    }
    found = Encoder.from_pretrained(sentence_model(files))
    assert found.max_length == 8
    expected = encoder.encode(["find: " + text for text in TEXTS], max_length=8, normalize=True)
    assert (found.encode(TEXTS) == expected).all()
    assert (found.encode("Find: A", prompt="") == found.encode("a")).all()


def test_model_in_a_subfolder(sentence_model, tiny, encoder):
    modules = [{**MODULES[0], "path": "0_Transformer"}, MODULES[1]]
    files = {"modules.json": modules, "1_Pooling/config.json": {"pooling_mode": "mean"}}
    folder = sentence_model(files)
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (folder / name).rename(folder / "0_Transformer" / name)
    assert (Encoder.from_pretrained(folder).encode(TEXTS) == encoder.encode(TEXTS)).all()
    assert "total" in CliRunner().invoke(main, ["info", str(folder)]).stdout


def test_model_in_a_subfolder_of_the_hub(sentence_model, tiny, monkeypatch):
    """The weights of a subfolder are fetched by a second request, which names it."""
    files = {"modules.json": MODULES[:2], "1_Pooling/config.json": {"pooling_mode": "mean"}}
    files["modules.json"] = [{**MODULES[0], "path": "0_BERT"}, MODULES[1]]
    folder, asked = sentence_model(files), []

    def resolve(name, allow_patterns=None, **options):
        asked.append((name, allow_patterns, options["revision"]))
        if allow_patterns is not None:
            shutil.copytree(tiny, folder / "0_BERT")
        return folder

    monkeypatch.setattr("bertfast.inference.encoder.resolve", resolve)
    assert Encoder.from_pretrained("owner/name", revision="v1").encode("a").shape == (32,)
    assert [call[::2] for call in asked] == [("owner/name", "v1")] * 2
    assert asked[0][1] is None
    assert "0_BERT/model*.safetensors" in asked[1][1]


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, UnsupportedError, "lasttoken"),
        (
            {"1_Pooling/config.json": {"pooling_mode_cls_token": 1, "pooling_mode_max_tokens": 1}},
            UnsupportedError,
            "pooling by cls + max is not supported, only by cls, mean, max",
        ),
        (
            {"modules.json": [*MODULES, {"idx": 3, "path": "3", "type": "x.models.Dense"}]},
            UnsupportedError,
            "the module Dense is not supported",
        ),
        ({"modules.json": MODULES[:1]}, CheckpointError, "expected a Transformer and a Pooling"),
        ({"modules.json": "{"}, CheckpointError, "expected a list of modules"),
        ({"modules.json": "[1]"}, CheckpointError, "expected a list of modules"),
        (
            {"modules.json": [MODULES[0], {**MODULES[1], "path": "../1_Pooling"}]},
            CheckpointError,
            "expected paths inside the checkpoint, got '../1_Pooling'",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": "x"}}, CheckpointError, "max_seq_length"),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "q"}},
            CheckpointError,
            "default_prompt_name is 'q', which is no prompt there",
        ),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_bad_configurations(sentence_model, files, kind, message):
    sound = {"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode": "mean"}}
    with pytest.raises(kind) as error:
        Encoder.from_pretrained(sentence_model({**sound, **files}))
    assert message in str(error.value)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError):
        Encoder.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_pool_empty_sequences(pooling):
    x = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    expected = {"cls": [1.0, -2.0], "mean": [2.0, -3.0], "max": [3.0, -2.0]}[pooling]
    assert pool(x, [0, 2, 0], pooling).tolist() == [[0, 0], expected, [0, 0]]
    assert pool(x[:0], [0, 0], pooling).tolist() == [[0, 0], [0, 0]]


def test_import_needs_only_torch_and_numpy():
    code = (
        "import sys, torch; before = set(sys.modules); import bertfast; print(*{'tokenizers', 'tqdm', "
        "'safetensors', 'huggingface_hub', 'click', 'pyarrow'} & set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
    assert bertfast.Encoder is Encoder
