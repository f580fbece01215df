"""What people do to a live model (accelerate, torchao, pruning, parametrizations, hooks, torch.func) works as in
transformers."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.autograd import forward_ad

import bertfast
from models.ecosystem import (
    HEADS,
    close,
    gradients,
    pair,
    ragged,
    same_calls,
    same_output,
    same_weights,
    unlabelled,
)

NAME = "BertForSequenceClassification"


# accelerate


@pytest.mark.tool("accelerate", "prepare, accumulate, clip, unwrap; bf16 too")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_prepare(precision, way):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    models = pair(NAME)
    losses = []
    for model in models:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=2
        )
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, eps=1e-3)
        made, optimizer = accelerator.prepare(model.train(), optimizer)
        with way("fused") if model is models[1] else torch.enable_grad():
            for seed in range(4):
                with accelerator.accumulate(made):
                    loss = made(**ragged(NAME, seed=seed)).loss
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(made.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
        assert accelerator.unwrap_model(made) is model
    AcceleratorState._reset_state(reset_partial_state=True)
    # bf16 rounds otherwise in fused operations: its 8 bits of a loss
    tolerance = 1e-5 if precision == "no" else 2**-7
    close(torch.stack(losses[4:]), torch.stack(losses[:4]), tolerance)
    same_weights(models[1], models[0], 1e-5 if precision == "no" else 5e-3)


@pytest.mark.tool("accelerate", "{how}")
@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_offload(how, way, tmp_path):
    import accelerate

    theirs, ours = pair(NAME)
    batch = unlabelled(ragged(NAME))
    where = {"offload_dir": str(tmp_path)} if how == "disk_offload" else {}
    ours = getattr(accelerate, how)(ours, execution_device="cpu", **where)
    with torch.no_grad(), way("transformers"):
        got = ours(**batch)
    same_output(got, theirs(**batch), batch["attention_mask"])


@pytest.mark.tool("accelerate", "init_empty_weights, load_checkpoint_and_dispatch")
def test_meta(way, tmp_path):
    import accelerate

    theirs, _ = pair(NAME)
    theirs.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = bertfast.BertForSequenceClassification(theirs.config)
    batch = unlabelled(ragged(NAME))
    with way("transformers"):  # whose masks cannot be made of a meta tensor
        output = empty(input_ids=batch["input_ids"].to("meta"))
    assert output.logits.is_meta
    loaded = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), device_map={"": "cpu"}
    )
    with torch.no_grad(), way("fused"):
        same_output(loaded.eval()(**batch), theirs(**batch), batch["attention_mask"])


# torch.func and forward mode


@pytest.mark.tool("torch.func", "functional_call: gradients and outputs of other weights")
def test_functional_call(way):
    theirs, ours = pair(NAME)
    batch = ragged(NAME)
    weights = {k: (v * 0.9).detach().requires_grad_() for k, v in theirs.named_parameters()}
    found = []
    for model in (theirs, ours):
        with way("fused") if model is ours else torch.enable_grad():
            loss = torch.func.functional_call(model, weights, (), dict(batch)).loss
            found.append((loss, *torch.autograd.grad(loss, list(weights.values()))))
    for got, want in zip(found[1], found[0], strict=True):
        close(got, want)


def on_embeds(model, batch):
    rest = {key: value for key, value in batch.items() if key not in ("input_ids", "labels")}
    return lambda x: model(inputs_embeds=x, **rest).logits


@pytest.mark.tool("torch.func", "{transform}")
@pytest.mark.parametrize("transform", ["grad", "jvp", "jacfwd", "jacrev", "hvp", "vmap"])
def test_transforms(transform, way):
    models = pair(NAME, attn_implementation="eager", num_hidden_layers=1)
    batch = ragged(NAME, 2)
    x = torch.randn(*batch["input_ids"].shape, 48)
    found = []
    for model in models:
        f = on_embeds(model, batch)
        with way("transformers") if model is models[1] else torch.enable_grad():
            if transform == "grad":
                value = torch.func.grad(lambda x, f=f: f(x).sum())(x)
            elif transform == "jvp":
                value = torch.stack(torch.func.jvp(f, (x,), (x.cos(),)))
            elif transform == "jacrev":
                value = torch.func.jacrev(f)(x)
            elif transform == "hvp":
                first = torch.func.grad(lambda x, f=f: f(x).sum())
                value = torch.func.jvp(first, (x,), (x.cos(),))[1]
            elif transform == "jacfwd":
                direction = torch.linspace(-1, 1, 3)
                line = lambda t, f=f: f(x + t.sum() * x.cos())  # noqa: E731
                value = torch.func.jacfwd(line)(direction)
            else:
                value = torch.func.vmap(f)(torch.stack([x, x.cos()]))
        found.append(value)
    close(found[1], found[0])


@pytest.mark.tool("torch.autograd.forward_ad", "tangents of the embeddings")
def test_forward_mode(way):
    models = pair(NAME, attn_implementation="eager")
    batch = ragged(NAME)
    x = torch.randn(*batch["input_ids"].shape, 48)
    found = []
    for model in models:
        with (
            forward_ad.dual_level(),
            way("transformers") if model is models[1] else torch.no_grad(),
        ):
            output = on_embeds(model, batch)(forward_ad.make_dual(x, x.cos()))
            found.append(forward_ad.unpack_dual(output).tangent)
    close(found[1], found[0])


# Hooks and intermediate values


@pytest.mark.tool("hooks", "a forward hook on {place}")
@pytest.mark.parametrize(
    "place",
    [
        "bert.encoder.layer.1",
        "bert.encoder.layer.0.attention.self",
        "bert.encoder.layer.0.output.dense",
        "bert.embeddings.word_embeddings",
        "bert.encoder",
        "bert.embeddings.dropout",
    ],
)
def test_hooks(place, way):
    models, seen = pair(NAME), []
    batch = ragged(NAME)
    for model in models:
        model.get_submodule(place).register_forward_hook(
            lambda module, given, output: seen.append(output)
        )
    same_calls(*models, way, "transformers")
    got, want = ((x if isinstance(x, torch.Tensor) else x[0]) for x in seen)
    assert want.shape[:2] == batch["input_ids"].shape
    close(got, want)


@pytest.mark.tool("hooks", "a hook that was removed")
def test_removed_hooks(way):
    models = pair(NAME)
    for model in models:
        layer = model.bert.encoder.layer[0]
        handles = [
            layer.register_forward_hook(lambda module, given, output: output),
            layer.output.register_forward_pre_hook(lambda module, given: None),
            layer.register_full_backward_hook(lambda module, grads, outs: None),
        ]
        for handle in handles:
            handle.remove()
    same_calls(*models, way, "fused")


@pytest.mark.tool("hooks", "on the model itself and on the classifier")
def test_hooks_on_the_head(way):
    models, seen = pair(NAME), []
    for model in models:
        model.classifier.register_forward_hook(lambda module, given, out: seen.append(given[0]))
        model.register_forward_pre_hook(lambda module, given: None)
    same_calls(*models, way, "fused")
    close(*seen)


@pytest.mark.tool("hooks", "{kind}")
@pytest.mark.parametrize("kind", ["full backward", "of all modules", "on a parameter"])
def test_other_hooks(kind, way):
    models, seen = pair(NAME), []
    handle = None
    for model in models:
        layer = model.bert.encoder.layer[0].intermediate
        if kind == "full backward":
            layer.register_full_backward_hook(lambda m, grads, outs: seen.append(outs[0]))
        elif kind == "on a parameter":
            layer.dense.weight.register_hook(lambda grad: seen.append(grad.clone()))
    if kind == "of all modules":

        def keep(module, given, output):
            if type(module).__name__ == "BertIntermediate":
                seen.append(output)

        handle = nn.modules.module.register_module_forward_hook(keep)
    try:
        same_calls(*models, way, "fused" if kind == "on a parameter" else "transformers")
    finally:
        if handle is not None:
            handle.remove()
    half = len(seen) // 2
    assert half in (1, 2)
    for got, want in zip(seen[:half], seen[half:], strict=True):
        close(got, want)


@pytest.mark.tool("captum", "layer integrated gradients of the embeddings")
def test_captum(way):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    batch = ragged(NAME, 3)
    found = []
    for model in pair(NAME):
        forward = lambda ids, mask, m=model: m(ids, attention_mask=mask).logits  # noqa: E731
        method = attr.LayerIntegratedGradients(forward, model.bert.embeddings)
        arguments = (batch["input_ids"], torch.zeros_like(batch["input_ids"]))
        options = {"additional_forward_args": (batch["attention_mask"],), "n_steps": 4}
        with way("transformers") if found else torch.enable_grad():
            found.append(method.attribute(*arguments, target=1, **options))
    close(found[1], found[0])


@pytest.mark.tool("hidden states", "retain_grad and autograd.grad of every layer's output")
@pytest.mark.parametrize("name", ["BertForMaskedLM", NAME])
def test_hidden_states(name, way):
    batch, found = ragged(name), []
    real = batch["attention_mask"] != 0
    for model in pair(name):
        with way("fused") if found else torch.enable_grad():
            output = model(**batch, output_hidden_states=True)
            states = output.hidden_states
            states[1].retain_grad()
            parts = torch.autograd.grad(output.loss, states, retain_graph=True)
            output.loss.backward()
        found.append([*(part[real] for part in parts), states[1].grad[real]])
        assert len(states) == 3
    for got, want in zip(found[1], found[0], strict=True):
        assert want.abs().max() > 1e-4
        close(got, want)


@pytest.mark.tool("forward", "output_attentions")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_attentions(name, way):
    theirs, ours = pair(name, attn_implementation="eager")
    batch = unlabelled(ragged(name))
    with torch.no_grad(), way("transformers"):
        got = ours(**batch, output_attentions=True)
    same_output(got, theirs(**batch, output_attentions=True), batch["attention_mask"])


@pytest.mark.tool("forward", "use_cache and what tokenizers and collators add")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_extra_arguments(name, way):
    theirs, ours = pair(name, attn_implementation="eager")
    batch = unlabelled(ragged(name))
    mask = batch["attention_mask"]
    extra = {"use_cache": True} if name == "BertModel" else {}
    extra |= {"special_tokens_mask": mask, "length": mask.sum(-1)}
    extra |= {"overflow_to_sample_mapping": torch.arange(len(mask))}
    with torch.no_grad():
        with way("fused"):
            got = ours(**batch, **extra)
        same_output(got, theirs(**batch), mask)


# Precision


@pytest.mark.tool("torch.autocast", "bf16: dtypes, and an error that is at most transformers'")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_autocast(name, way):
    """The error against float64, as a mean over many texts: at most a tenth above transformers'."""
    theirs, ours = pair(name)
    exact = copy.deepcopy(theirs).double()
    batch = unlabelled(ragged(name, 24))
    with torch.no_grad():
        want = exact(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            with way("fused"):
                got = ours(**batch)
            their = theirs(**batch)
    assert list(got) == list(their)
    for key, value in their.items():
        assert got[key].dtype == value.dtype, key
        real = batch["attention_mask"] != 0
        real = real if value.shape[:2] == real.shape else ...
        errors = [(x[key][real] - want[key][real]).abs().mean() for x in (got, their)]
        assert errors[0] <= 1.1 * errors[1], key


@pytest.mark.tool("enable_input_require_grads", "the word embeddings' hook keeps the packed stream")
def test_input_require_grads(way):
    models = pair(NAME)
    for model in models:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
        model.enable_input_require_grads()
    same_calls(*models, way, "modules")
    for model in models:
        model.zero_grad()
        model.disable_input_require_grads()
    same_calls(*models, way, "fused")
    assert gradients(models[1]).keys() == {"classifier.weight", "classifier.bias"}


@pytest.mark.tool(
    "classes derived from ours", "a head's subclass; a model with our BertModel inside"
)
def test_derived_classes(way, tmp_path):
    class Twice(bertfast.BertForSequenceClassification):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    class Around(transformers.BertPreTrainedModel):
        def __init__(self, config, kind=bertfast.BertModel):
            super().__init__(config)
            self.bert, self.out = kind(config), nn.Linear(48, 2)
            self.post_init()

        def forward(self, **given):
            return self.out(self.bert(**given).pooler_output)

    theirs, ours = pair(NAME)
    batch = unlabelled(ragged(NAME))
    twice = Twice(ours.config).eval()
    twice.load_state_dict(theirs.state_dict())
    around, other = Around(ours.config), Around(ours.config, transformers.BertModel)
    around.save_pretrained(tmp_path)
    other.load_state_dict(around.state_dict())
    loaded = Around.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        with way("fused"):
            got = twice(**batch).logits, loaded(**batch)
        close(got[0], 2 * theirs(**batch).logits)
        close(got[1], other.eval()(**batch))


@pytest.mark.tool("torch.optim.swa_utils", "averaged models")
def test_averaged(way):
    theirs, ours = pair("BertForMaskedLM")
    averages = [torch.optim.swa_utils.AveragedModel(model) for model in (theirs, ours)]
    for model, average in zip((theirs, ours), averages, strict=True):
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.mul_(1.2)
        average.update_parameters(model)
    same_weights(averages[1], averages[0])
    batch = unlabelled(ragged("BertForMaskedLM"))
    with torch.no_grad(), way("fused"):
        same_output(averages[1](**batch), averages[0](**batch), batch["attention_mask"])
