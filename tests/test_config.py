"""The settings of a run: what is allowed, what is stored, and which random numbers follow from them."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from minisimclr.training.config import ORDER, VIEWS, WEIGHTS, Config, build_model, build_optimizer
from minisimclr.training.optim import LARS, SGD

pytestmark = pytest.mark.host

FIELDS = {item.name: item for item in dataclasses.fields(Config)}
NUMBERS = {name: item.metadata["range"] for name, item in FIELDS.items() if type(item.default) in (int, float)}
CHOICES = {name: item.metadata["choices"] for name, item in FIELDS.items() if item.metadata["choices"]}


def refused(**settings: object) -> str:
    """The one line with which a setting is refused; it begins with the setting's name."""
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name} must be ") as error:
        Config(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# ── What is allowed ───────────────────────────────────────────────────────────────────────────────


def test_every_setting_has_a_help_text_and_every_number_a_range():
    assert all(item.metadata["help"] for item in FIELDS.values())
    for name, (least, most, above) in NUMBERS.items():
        assert max(least, above) > -math.inf, name
        assert most < math.inf, name


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_its_range_is_refused(name):
    least, most, above = NUMBERS[name]
    kind = type(FIELDS[name].default)
    smallest = above if above > -math.inf else least - 1
    for value in (smallest, -(10**18), most * 2 + 1):
        refused(**{name: kind(value)})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_allowed(name):
    least, most, _ = NUMBERS[name]
    for value in (least, most):
        if value > -math.inf:
            assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize("name", [name for name in NUMBERS if type(FIELDS[name].default) is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_what_is_not_a_finite_number_is_refused(name, value):
    refused(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(name):
    assert refused(**{name: "nonsense"}) == f"{name} must be one of {', '.join(CHOICES[name])}; not 'nonsense'"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 32.0),
        ("size", True),
        ("size", "32"),
        ("size", None),
        ("seed", np.int64(1)),
        ("lr", True),
        ("lr", "0.3"),
        ("lr", np.float32(0.3)),
        ("blur", 1),
        ("blur", "yes"),
        ("encoder", 18),
        ("data", None),
    ],
)
def test_a_value_of_another_type_is_refused(name, value):
    """True is no number, 1 no truth, and 32.0 no number of pixels."""
    assert "of type" in refused(**{name: value})


def test_a_whole_number_will_do_where_a_fraction_is_expected_and_becomes_one():
    assert type(Config(temperature=1).temperature) is float


# ── What is stored ────────────────────────────────────────────────────────────────────────────────


def test_settings_survive_json():
    config = Config(temperature=0.07, blur=True, seed=2**63 - 1, encoder="resnet18", lr=1)
    assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_settings_that_are_not_stored_have_their_defaults():
    assert Config.from_dict({"seed": 3}) == Config(seed=3)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match=r"^unknown setting tau, zeal$"):
        Config.from_dict({"seed": 3, "zeal": 1, "tau": 0.1})


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


# ── Random numbers ────────────────────────────────────────────────────────────────────────────────


def test_random_numbers_differ_by_seed_purpose_and_index_and_are_otherwise_the_same():
    streams = [
        (seed, purpose, index)
        for seed in (0, 1, 2**40)
        for purpose in (WEIGHTS, ORDER, VIEWS)
        for index in (0, 1, 2, 1000)
    ]
    drawn = [Config(seed=seed).rng(purpose, index).integers(2**62) for seed, purpose, index in streams]
    assert len(set(drawn)) == len(streams)
    assert drawn == [Config(seed=seed).rng(purpose, index).integers(2**62) for seed, purpose, index in streams]


# ── What is built ─────────────────────────────────────────────────────────────────────────────────


def test_the_model_follows_from_the_seed():
    one, same, other = (build_model(Config(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["encoder.conv1.weight"], other["encoder.conv1.weight"])


@pytest.mark.parametrize(
    ("settings", "stem"),
    [
        ({}, "small"),
        ({"encoder": "resnet18"}, "cifar"),
        ({"encoder": "resnet18", "size": 95}, "cifar"),
        ({"encoder": "resnet18", "size": 96}, "imagenet"),
        ({"stem": "cifar"}, "cifar"),
    ],
)
def test_the_stem_suits_the_images_unless_told(settings, stem):
    assert build_model(Config(**settings)).encoder.stem == stem


def test_the_head_is_as_wide_as_h_and_ends_in_z():
    model = build_model(Config(head_layers=3, head_dim=16, width=2))
    shapes = [a.shape for name, a in model.head.state_dict().items() if "linear" in name]
    assert shapes == [(256, 256), (256, 256), (16, 256)]


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("lars", LARS)])
def test_the_optimizer_has_the_settings(name, kind):
    config = Config(optimizer=name, lr=0.7, momentum=0.5, weight_decay=0.01)
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is kind
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.7, 0.5, 0.01)
    assert all(a is b for a, b in zip(optimizer.params, model.parameters()))
