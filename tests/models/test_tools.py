"""What people do to a live model (accelerate, torchao, pruning, parametrizations, hooks, torch.func) works as in
transformers."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.autograd import forward_ad

import bertfast
from harness import near
from models.ecosystem import (
    HEADS,
    gradients,
    in_float64,
    pair,
    ragged,
    real_tokens,
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

    theirs, ours = pair(NAME)
    found = []
    for model in (in_float64(theirs), theirs, ours):
        losses = []
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = precision if model.dtype == torch.float32 else "no"
        accelerator = Accelerator(cpu=True, mixed_precision=mixed, gradient_accumulation_steps=2)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, eps=1e-3)
        made, optimizer = accelerator.prepare(model.train(), optimizer)
        with way("fused") if model is ours else torch.enable_grad():
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
        found.append((losses, model.state_dict()))
    AcceleratorState._reset_state(reset_partial_state=True)
    exact, eager, got = found
    rounded = torch.bfloat16 if precision == "bf16" else None
    near("losses and weights", got, exact, eager, rounded)


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
    same_output(got, theirs, batch)


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
        got = loaded.eval()(**batch)
    same_output(got, theirs, batch)


# torch.func and forward mode


@pytest.mark.tool("torch.func", "functional_call: gradients and outputs of other weights")
def test_functional_call(way):
    theirs, ours = pair(NAME)
    batch = ragged(NAME)
    lent = {k: v.detach() * 0.9 for k, v in theirs.named_parameters()}
    found = []
    for model in (in_float64(theirs), theirs, ours):
        weights = {k: v.to(model.dtype).requires_grad_() for k, v in lent.items()}
        with way("fused") if model is ours else torch.enable_grad():
            loss = torch.func.functional_call(model, weights, (), dict(batch)).loss
            loss.backward()
        found.append((loss, {k: v.grad for k, v in weights.items()}))
    exact, eager, got = found
    near("loss and gradients", got, exact, eager)


def on_embeds(model, batch):
    rest = {key: value for key, value in batch.items() if key not in ("input_ids", "labels")}
    return lambda x: model(inputs_embeds=x, **rest).logits


@pytest.mark.tool("torch.func", "{transform}")
@pytest.mark.parametrize("transform", ["grad", "jvp", "jacfwd", "jacrev", "hvp", "vmap"])
def test_transforms(transform, way):
    theirs, ours = pair(NAME, attn_implementation="eager", num_hidden_layers=1)
    batch = ragged(NAME, 2)
    drawn = torch.randn(*batch["input_ids"].shape, 48)
    found = []
    for model in (in_float64(theirs), theirs, ours):
        f, x = on_embeds(model, batch), drawn.to(model.dtype)
        with way("transformers") if model is ours else torch.enable_grad():
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
                direction = torch.linspace(-1, 1, 3, dtype=x.dtype)
                line = lambda t, f=f, x=x: f(x + t.sum() * x.cos())  # noqa: E731
                value = torch.func.jacfwd(line)(direction)
            else:
                value = torch.func.vmap(f)(torch.stack([x, x.cos()]))
        found.append(value)
    exact, eager, got = found
    near(transform, got, exact, eager)


@pytest.mark.tool("torch.autograd.forward_ad", "tangents of the embeddings")
def test_forward_mode(way):
    theirs, ours = pair(NAME, attn_implementation="eager")
    batch = ragged(NAME)
    drawn = torch.randn(*batch["input_ids"].shape, 48)
    found = []
    for model in (in_float64(theirs), theirs, ours):
        x = drawn.to(model.dtype)
        with (
            forward_ad.dual_level(),
            way("transformers") if model is ours else torch.no_grad(),
        ):
            output = on_embeds(model, batch)(forward_ad.make_dual(x, x.cos()))
            found.append(forward_ad.unpack_dual(output).tangent)
    exact, eager, got = found
    near("tangents", got, exact, eager)


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
    got, want, exact = ((x if isinstance(x, torch.Tensor) else x[0]) for x in seen)
    assert want.shape[:2] == batch["input_ids"].shape
    near(place, got, exact, want)


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
    got, want, exact = seen
    near("what the hook sees", got, exact, want)


@pytest.mark.tool("hooks", "{kind}")
@pytest.mark.parametrize("kind", ["full backward", "of all modules", "on a parameter"])
def test_other_hooks(kind, way):
    (theirs, ours), seen = pair(NAME), []
    exact, handle = in_float64(theirs), None
    for model in (exact, theirs, ours):
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
        expected = "fused" if kind == "on a parameter" else "transformers"
        same_calls(theirs, ours, way, expected, exact=exact)
    finally:
        if handle is not None:
            handle.remove()
    third = len(seen) // 3
    assert third in (1, 2)
    got, want, exact = (seen[third * i : third * (i + 1)] for i in range(3))
    near("what the hook sees", got, exact, want)


@pytest.mark.tool("captum", "layer integrated gradients of the embeddings")
def test_captum(way):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    batch = ragged(NAME, 3)
    found = []
    theirs, ours = pair(NAME)
    for model in (in_float64(theirs), theirs, ours):
        forward = lambda ids, mask, m=model: m(ids, attention_mask=mask).logits  # noqa: E731
        method = attr.LayerIntegratedGradients(forward, model.bert.embeddings)
        arguments = (batch["input_ids"], torch.zeros_like(batch["input_ids"]))
        options = {"additional_forward_args": (batch["attention_mask"],), "n_steps": 4}
        with way("transformers") if model is ours else torch.enable_grad():
            found.append(method.attribute(*arguments, target=1, **options))
    exact, eager, got = found
    near("attributions", got.to(eager.dtype), exact, eager)


@pytest.mark.tool("hidden states", "retain_grad and autograd.grad of every layer's output")
@pytest.mark.parametrize("name", ["BertForMaskedLM", NAME])
def test_hidden_states(name, way):
    batch, found = ragged(name), []
    real = batch["attention_mask"] != 0
    theirs, ours = pair(name)
    for model in (in_float64(theirs), theirs, ours):
        with way("fused") if model is ours else torch.enable_grad():
            output = model(**batch, output_hidden_states=True)
            states = output.hidden_states
            states[1].retain_grad()
            parts = torch.autograd.grad(output.loss, states, retain_graph=True)
            output.loss.backward()
        found.append([*(part[real] for part in parts), states[1].grad[real]])
        assert len(states) == 3
    exact, eager, got = found
    assert all(part.abs().max() > 1e-4 for part in exact)  # there is something to compare
    near("gradients of hidden states", got, exact, eager)


@pytest.mark.tool("forward", "output_attentions")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_attentions(name, way):
    theirs, ours = pair(name, attn_implementation="eager")
    batch = unlabelled(ragged(name))
    with torch.no_grad():
        with way("transformers"):
            got = ours(**batch, output_attentions=True)
        same_output(got, theirs, batch, output_attentions=True)


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
        same_output(got, theirs, batch)


# Precision


@pytest.mark.tool("torch.autocast", "bf16: dtypes, and the accuracy check")
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_autocast(name, way):
    theirs, ours = pair(name)
    batch = unlabelled(ragged(name, 24))
    with torch.no_grad():
        exact = in_float64(theirs)(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            with way("fused"):
                got = ours(**batch)
            eager = theirs(**batch)
    assert list(got) == list(eager)
    found = (real_tokens(output, batch["attention_mask"]) for output in (got, exact, eager))
    near("output under autocast", *found, rounded=torch.bfloat16)


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
        for mine, model, times in zip(got, (theirs, other.eval()), (2, 1), strict=True):
            eager, exact = model(**batch), in_float64(model)(**batch)
            if times == 2:
                eager, exact = eager.logits * 2, exact.logits * 2
            near("scores", mine, exact, eager)


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
    with torch.no_grad():
        with way("fused"):
            got = averages[1](**batch)
        same_output(got, averages[0], batch)
