"""Recipes: what is read, and what is refused by which words."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bertfast.cli import main
from bertfast.errors import RecipeError
from bertfast.training import pretraining
from bertfast.training.recipe import from_dict, read_recipe, shipped
from training.runs import recipe_of

FIELDS = {"store": "s", "config": {}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rat": 1.0}, "learning_rat: .* Did you mean learning_rate"),
        ({"optimizer": "sgd"}, "optimizer: expected one of adamw, lamb, got 'sgd'"),
        ({"warmup": 2}, "warmup: expected a share"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0"),
        ({"betas": [0.9]}, "betas: expected two numbers"),
        ({"phases": []}, "phases: expected at least one"),
        ({"phases": [{"length": 0}]}, "phases: length: expected a whole number"),
        ({"phases": [{"lenght": 8}]}, "Did you mean length"),
        ({"masking": {"share": 2}}, "share: expected"),
        ({"config": None}, "got neither"),
        ({"budget": "24h"}, 'budget: expected a time with schedule "budget" alone'),
        ({"budget": "soon", "schedule": "budget"}, 'such as "24h"'),
        ({"evaluate_every": 5}, "held_out: expected a share above 0"),
        ({"keep": 0}, "keep: expected a whole number, at least 1"),
        ({"store": None}, "store"),
    ],
)
def test_wrong(changes, said):
    fields = {k: v for k, v in {**FIELDS, **changes}.items() if k != "store" or v}
    with pytest.raises(RecipeError, match=said):
        from_dict(fields, "r.yaml")


def test_values_as_yaml_has_them(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "store: s\nconfig: {hidden_size: 8}\nlearning_rate: 1e-4\nbudget: 1.5h\nschedule: budget\n"
    )
    recipe = read_recipe(path, seed=3)
    assert (recipe.learning_rate, recipe.seconds(), recipe.seed) == (1e-4, 5400, 3)


@pytest.mark.parametrize("text", ["", "model: other\n"])
def test_a_checkpoint_in_the_place_of_a_new_model(tmp_path, monkeypatch, text):
    """Of what the recipe says of the model, all but the sizes of a new one holds."""
    path, found = tmp_path / "r.yaml", []
    path.write_text(f"store: s\nconfig: {{num_hidden_layers: 3, hidden_dropout_prob: 0.0}}\n{text}")
    monkeypatch.setattr(pretraining, "pretrain", lambda recipe, *_, **__: found.append(recipe))
    arguments = ["pretrain", str(path), "-o", str(tmp_path / "run"), "--model", "m"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    kept = {"num_hidden_layers": 3} if text else {}
    assert found == [read_recipe(path, model="m")]
    assert (found[0].model, found[0].config) == ("m", {**kept, "hidden_dropout_prob": 0.0})


def test_there_and_back(store):
    recipe = recipe_of(store.folder)
    assert from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize("text", ["a: [", "- a", "\x00"])
def test_no_recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml: expected"):
        read_recipe(path)


def test_no_file():
    with pytest.raises(RecipeError, match="bert-base, bert-large"):
        read_recipe("bert-huge")


@pytest.mark.parametrize("name", shipped())
def test_shipped(name):
    recipe = read_recipe(name, store="s")
    assert recipe.steps >= 100_000
    assert recipe.dtype == "bfloat16"


def test_papers_schedule():
    recipe = read_recipe("bert-base", store="s")
    assert [(p.length, p.steps, p.batch) for p in recipe.phases] == [
        (128, 900_000, 256),
        (512, 100_000, 256),
    ]
    assert (recipe.learning_rate, recipe.warmup * recipe.steps) == (1e-4, 10_000)


def test_show(store, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(recipe_of(store.folder).as_dict()))  # JSON is YAML
    shown = []
    for rank in (None, "0", "1"):
        command = ["show", str(store.folder), str(path), "--step", "2", "--processes", "2"]
        result = CliRunner().invoke(main, command + (["--rank", rank] if rank else []))
        assert result.exit_code == 0, result.output
        shown.append([line for line in result.output.splitlines() if "[CLS]" in line])
    assert sorted(shown[1] + shown[2]) == sorted(shown[0])
    assert len(shown[0]) == 8
    assert all("|" in line and ("follows" in line or "random" in line) for line in shown[0])
