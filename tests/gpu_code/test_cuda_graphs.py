"""All layers' launches as one CUDA graph, recorded and replayed by the fake runtime, the kernels executed: the bits of
plain launches, whatever becomes of weights, streams, threads and memory.

Before each replay the arena is made NaN and counts as unwritten.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import bertfast
from bertfast import BertConfig, BertForSequenceClassification, BertModel, dispatch, extension
from bertfast.cli.info import recorded
from bertfast.errors import ArgumentError, UnsupportedError
from bertfast.ops import _graphs, encoder
from gpu_code import cuda_driver, nvcc
from gpu_code.recording import MODEL, card, poison
from harness.layers import layers_of, stream, tensors_of, together, trained

pytestmark = pytest.mark.skipif(not nvcc.find(), reason=nvcc.absent())
LENGTHS, OTHER = (20, 0, 5), (1, 9, 15)
OUT_OF_MEMORY = 2


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    with card(request, monkeypatch) as device, torch.no_grad():
        yield device


def _call(lengths=LENGTHS, dtype=torch.bfloat16, scale=1.0):
    x, batch = stream(lengths, dtype)
    return x * scale, batch._replace(example_ids=None)


def _plain(weights, call, **options):
    with bertfast.graphs(False):
        return together(weights, *call, **options)


def _replays(device, weights, call, **options) -> int:
    """Checks the bits; how many of three calls came from a graph."""
    expected, count = _plain(weights, call, **options), 0
    for _ in range(3):
        poison(device)
        with dispatch.record() as log:
            found = together(weights, *call, **options)
        count += ("graph", "cuda") in [(c.direction, c.backend) for c in log]
        for got, right in zip(found, expected, strict=True):
            assert got is right is None or torch.equal(got, right)
    return count


ORDERS = [{"order": "reversed"}, {"order": "shuffled", "seed": 3}]


@pytest.mark.parametrize("device", [{}, *ORDERS], indirect=True, ids=str)
@pytest.mark.parametrize("wanted", ["rows", "first_only", "states"])
def test_replays_of_other_inputs(device, wanted):
    """Other rows, other lengths of as many tokens and sequences."""
    weights, options = layers_of(torch.bfloat16, 2), {} if wanted == "rows" else {wanted: True}
    assert _replays(device, weights, _call(), **options) == 2
    launched = len(device.launches)
    for call in (_call(OTHER), _call(scale=0.5)):
        assert _replays(device, weights, call, **options) == 3
    per_call = (len(device.launches) - launched) // 8
    assert per_call == 2 * 7 + 2 * (wanted == "first_only")
    assert len(_graphs._CAPTURED) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_dtypes(device, dtype):
    assert _replays(device, layers_of(dtype, 1), _call(dtype=dtype)) == 2


def test_results_are_the_callers(device):
    """A later replay writes to none of them."""
    weights, calls = layers_of(torch.bfloat16, 1), (_call(), _call(scale=0.5))
    expected = [_plain(weights, call)[0] for call in calls]
    _replays(device, weights, calls[0])
    found = [together(weights, *call)[0] for call in calls]
    poison(device)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("first", [False, True])
def test_inference_mode(device, first):
    """Recorded inside it and replayed outside, and the other way round."""
    weights, call = layers_of(torch.bfloat16, 1), _call()
    with torch.inference_mode(first):
        assert _replays(device, weights, call) == 2
    with torch.inference_mode(not first):
        assert _replays(device, weights, call) == 3


def test_weights_written_in_place(device):
    weights, call = layers_of(torch.bfloat16, 1), _call()
    assert _replays(device, weights, call) == 2
    before = _plain(weights, call)[0]
    for tensor in tensors_of(weights):
        tensor.mul_(0.75)  # as an optimizer does
    assert _replays(device, weights, call) == 3
    assert not torch.equal(before, _plain(weights, call)[0])


@pytest.mark.parametrize("which", range(16))
def test_a_weight_that_lies_elsewhere(which):
    """One tensor of a layer alone; the old memory is NaN."""
    weights, call = layers_of(torch.bfloat16, 1), _call()
    for _ in range(2):
        together(weights, *call)
    (old,) = _graphs._CAPTURED
    tensor = tensors_of(weights)[which]
    kept = tensor.data
    tensor.data = tensor.clone()
    with _disable_current_modes():
        kept.fill_(float("nan"))
    assert torch.equal(together(weights, *call)[0], _plain(weights, call)[0])
    assert set(_graphs._CAPTURED) == {old}
    assert len(_graphs._SEEN) == 1


def test_what_is_never_recorded(device):
    """Dropout, a gradient, many tokens, and where the caller says so."""
    weights, call = layers_of(torch.bfloat16, 1), _call()
    dropping = trained(weights, (), (0.1, 0.0, 0.0))
    seeds, before = torch.tensor([[1, 2, 3]]), []
    for _ in range(3):
        before.append(together(dropping, *call, seeds=seeds)[0])
        seeds = seeds + 1
    assert not torch.equal(before[1], before[2])  # drawn anew each time
    with torch.enable_grad():
        learning = trained(weights, (0,), (0.0,) * 3)
        for _ in range(3):
            together(learning, *call)
    with dispatch.held(dispatch.scope()._replace(graph_tokens=24)):
        assert _replays(device, weights, call) == 0
    with bertfast.graphs(False):
        assert _replays(device, weights, call) == 0
    assert not _graphs._CAPTURED
    with dispatch.held(dispatch.scope()._replace(graph_tokens=25)):
        assert _replays(device, weights, call) == 2
    with bertfast.graphs(False):
        assert _replays(device, weights, call) == 0


def test_what_holds_for_products_is_another_call(device):
    weights, call = layers_of(torch.float32, 1), _call(dtype=torch.float32)
    assert _replays(device, weights, call) == 2
    with dispatch.batch_invariant():
        assert _replays(device, weights, call) == 2
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = not allowed
    try:
        assert _replays(device, weights, call) == 2
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert _replays(device, weights, call) == 3


def test_the_arena_grows(device):
    """What was recorded of less memory is recorded again."""
    weights = layers_of(torch.bfloat16, 1)
    small, large = _call((5, 5)), _call((30, 9))
    assert _replays(device, weights, small) == 2
    (arena,) = _graphs.arenas()
    size = arena.memory.nbytes
    assert _replays(device, weights, large) == 2
    assert arena.memory.nbytes > size
    assert len(_graphs._CAPTURED) == 1
    assert _replays(device, weights, small) == 3  # it came before
    assert _replays(device, weights, large) == 3
    assert _graphs.describe() == [(torch.device("cpu"), 2, arena.memory.nbytes)]
    assert "of calls of at most 8,192 tokens, 16 at most; now 2 in 1 arenas" in recorded(
        torch.device("cpu")
    )


@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_the_least_recently_used_goes():
    weights = layers_of(torch.bfloat16, 1)
    for tokens in range(18, 0, -1):  # the largest first, so that the arena stays
        for _ in range(2):
            together(weights, *_call((tokens,)))
    assert len(_graphs._CAPTURED) == 16
    assert cuda_driver.runtime().fake_cudart_graphs() == 16
    with dispatch.record() as log:
        together(weights, *_call((17,)))
        together(weights, *_call((16,)))
    assert [c.direction for c in log] == ["forward", "forward", "graph"]
    for _ in range(2):  # of a larger arena: all others have come once
        together(weights, *_call((40,)))
    assert (len(_graphs._CAPTURED), len(_graphs._SEEN)) == (1, 16)


@pytest.mark.parametrize("where", ["instantiate", "arena"])
def test_out_of_memory_while_it_is_recorded(device, where, monkeypatch):
    weights, call = layers_of(torch.bfloat16, 1), _call()
    right = _plain(weights, call)[0]
    if where == "instantiate":
        cuda_driver.runtime().fake_cudart_refuse_graphs(OUT_OF_MEMORY)
        reason = "make a graph: an error of the emulated launch"
    else:
        reason = "CUDA out of memory."

        def refuse(self, size, like):
            raise torch.OutOfMemoryError(reason)

        monkeypatch.setattr(_graphs.Arena, "reserve", refuse)
    for attempt in range(3):
        with dispatch.record() as log:
            assert torch.equal(together(weights, *call)[0], right)
        refused = [c.reasons for c in log if c.direction == "graph"]
        assert refused == ([{"cuda": reason}] if attempt else [])
    assert not _graphs._CAPTURED
    assert cuda_driver.runtime().cudaPeekAtLastError() == 0
    assert cuda_driver.runtime().fake_cudart_graphs() == 0


def test_inside_the_callers_own_recording(device):
    """The launches become part of it, and none of ours is replayed or recorded."""
    weights, call = layers_of(torch.bfloat16, 1), _call()
    runtime, handle = cuda_driver.runtime(), ctypes.c_void_p(cuda_driver.STREAM)
    graph = ctypes.c_void_p()
    assert _replays(device, weights, call) == 2
    launched = len(device.launches)
    assert runtime.cudaStreamBeginCapture(handle, 0) == 0
    try:
        for layers in (weights, layers_of(torch.bfloat16, 1)):
            for _ in range(3):
                together(layers, *call)
    finally:
        assert runtime.cudaStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert len(device.launches) == launched
    assert len(_graphs._CAPTURED) == 1
    assert runtime.cudaGraphDestroy(graph) == 0


def test_two_streams(device):
    """A graph and an arena each; nothing of one stream's is launched on the other."""
    weights, call = layers_of(torch.bfloat16, 1), _call()
    assert _replays(device, weights, call) == 2
    other = cuda_driver.STREAM + 16
    with _on_stream(other):
        assert _replays(device, weights, call) == 2
    assert _replays(device, weights, call) == 3
    first, second = (call.arena.memory.data_ptr() for call in _graphs._CAPTURED.values())
    assert first != second
    assert sorted(stream for _, stream in _graphs._ARENAS) == [cuda_driver.STREAM, other]


@contextlib.contextmanager
def _on_stream(handle):
    """Another current stream, and the only one that the fake runtime takes launches on."""
    runtime, current = cuda_driver.runtime(), extension.current_stream
    extension.current_stream = lambda _: contextlib.nullcontext(handle)
    runtime.fake_cudart_stream(ctypes.c_void_p(handle))
    try:
        yield
    finally:
        extension.current_stream = current
        runtime.fake_cudart_stream(ctypes.c_void_p(cuda_driver.STREAM))


def test_two_threads(device, monkeypatch):
    """On one stream: from a call's copy of its inputs to that of its result no other call comes between."""
    weights, calls = layers_of(torch.bfloat16, 1), (_call(), _call(scale=0.5))
    right = [_plain(weights, call)[0] for call in calls]
    for _ in range(2):
        together(weights, *calls[0])
    (captured,) = _graphs._CAPTURED.values()
    inside, results, replay = [], {}, extension.replay

    def slowly(*args):
        inside.append(threading.get_ident())
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(0.3)  # the other thread would be here, too
        device.pointed += tensors_of(weights)  # which the other call may have made it forget
        replay(*args)

    def run(which):
        with torch.no_grad(), dispatch.use_backend("cuda"):
            results[which] = together(weights, *calls[which])[0]

    meeting = threading.Barrier(2)
    monkeypatch.setattr(extension, "replay", slowly)
    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(inside)) == 2
    assert meeting.broken
    assert [torch.equal(results[which], right[which]) for which in (0, 1)] == [True, True]
    assert list(_graphs._CAPTURED.values()) == [captured]


def _model(**options):
    return BertModel(BertConfig(**MODEL), **options).to(torch.bfloat16).eval()


def _bits(model, ids):
    with bertfast.graphs(False):
        return model(ids).last_hidden_state


def _graph(model, ids) -> bool:
    """Whether the call was a replay; its bits are those of plain launches."""
    with dispatch.record() as log:
        found = model(ids).last_hidden_state
    assert torch.equal(found, _bits(model, ids))
    return any(choice.direction == "graph" and choice.backend for choice in log)


def test_a_model(device):
    """Recorded beforehand; then a hook, other places of weights, and other sizes of tables."""
    model, ids = _model(), torch.arange(1, 15).view(2, 7)
    model.capture([(2, 7), (1, 3)])
    poison(device)
    assert _graph(model, ids)
    assert _graph(model, ids.flip(1))
    assert not _graph(model, ids[:, :4])
    handle = model.encoder.layer[1].output.register_forward_hook(lambda *args: args[2] * 2)
    assert not _graph(model, ids)
    handle.remove()
    assert _graph(model, ids)
    model.resize_token_embeddings(60)  # another table
    assert [_graph(model, ids + 40) for _ in range(3)] == [False, True, True]
    state = {name: tensor.clone() * 1.5 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert [_graph(model, ids) for _ in range(3)] == [False, True, True]
    model.load_state_dict({name: tensor * 0.5 for name, tensor in state.items()})
    assert _graph(model, ids)
    model.to(torch.float32)
    assert [_graph(model, ids) for _ in range(3)] == [False, True, True]


def test_a_model_under_autocast():
    model, ids = _model().to(torch.float32), torch.arange(1, 15).view(2, 7)
    for _ in range(2):
        assert [_graph(model, ids) for _ in range(3)][2]
        with torch.autocast("cpu", torch.bfloat16):
            assert not any(_graph(model, ids) for _ in range(3))


def test_an_optimizer_between_replays():
    model, ids = _model(), torch.arange(1, 15).view(2, 7)
    model.capture([(2, 7)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = _bits(model, ids)
    with torch.enable_grad():
        model(ids).pooler_output.float().square().sum().backward()
    optimizer.step()
    assert _graph(model, ids)
    assert not torch.equal(before, _bits(model, ids))


@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_compiled():
    """What torch.compile traces calls the operations, and records nothing."""
    weights, call = layers_of(torch.bfloat16, 1), _call()

    def run(x):
        return encoder.encoder(x, tensors_of(weights), [1e-12] * 2, *call[1][4:6], num_heads=2)

    with _disable_current_modes():
        compiled = torch.compile(run, backend="eager")
        for _ in range(3):
            assert compiled(call[0]) is None
    assert not _graphs._CAPTURED
    assert not _graphs._SEEN


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_the_argument_of_from_pretrained(kind, tmp_path):
    kind(BertConfig(**MODEL)).save_pretrained(tmp_path)
    for options, expected in (({}, "auto"), ({"graphs": False}, False)):
        model = kind.from_pretrained(tmp_path, **options)
        assert model.graphs == model.base_model.graphs == expected
        model.graphs = False
        assert model.base_model.graphs is False
        with pytest.raises(ArgumentError, match="graphs: expected 'auto', 'training' or False"):
            model.graphs = True


def test_a_head(device):
    """Of which each sequence's first row is enough."""
    head = BertForSequenceClassification(BertConfig(**MODEL)).to(torch.bfloat16).eval()
    head.capture([(2, 7)])
    poison(device)
    with dispatch.record() as log:
        found = head(torch.ones(2, 7, dtype=torch.int64)).logits
    with bertfast.graphs(False):
        assert torch.equal(found, head(torch.ones(2, 7, dtype=torch.int64)).logits)
    assert "graph" in {choice.direction for choice in log}


@pytest.mark.parametrize("device", [{"execute": False}], indirect=True)
def test_captures_that_are_refused():
    off = _model(graphs=False)
    with pytest.raises(
        UnsupportedError, match=r"capture: \[1, 3\] is not recorded: graphs are off"
    ):
        off.capture([(1, 3)])
    assert not _graphs._CAPTURED
    assert not _graphs._SEEN
    with pytest.raises(
        ArgumentError, match="graphs: expected 'auto', 'training' or False, got 'always'"
    ):
        _model(graphs="always")
    model = _model()
    with pytest.raises(UnsupportedError, match="the model is in train mode"):
        model.train().capture([(1, 3)])
    with pytest.raises(ArgumentError, match="at most 16"):
        model.eval().capture([(1, 1)] * 17)
    with dispatch.use_backend("eager"), pytest.raises(UnsupportedError, match="eager was asked"):
        model.capture([(1, 3)])
    model.encoder.layer[0].register_forward_hook(lambda *args: None)
    with pytest.raises(UnsupportedError, match="fused: encoder.layer.0 has forward hooks"):
        model.capture([(1, 3)])
