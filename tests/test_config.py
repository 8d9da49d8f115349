"""The settings of a run: what is allowed, what is stored, and which random numbers follow from them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
from contextlib import nullcontext

import numpy as np
import pytest

from minisimclr import ops
from minisimclr.engine.autograd import no_grad
from minisimclr.nn import DEFAULT_FORMS, METHOD, BatchNorm2d, Conv2d, Linear, method_of
from minisimclr.ntxent import nt_xent
from minisimclr.resnet import ENCODERS, resnet18
from minisimclr.training import batches
from minisimclr.training.config import METHODS, ORDER, VIEWS, WEIGHTS, Config, build_model, build_optimizer
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
        ("seed", np.bool_(True)),
        ("seed", np.float64(1)),
        ("lr", True),
        ("lr", "0.3"),
        ("lr", np.longdouble(0.3)),
        ("blur", 1),
        ("blur", "yes"),
        ("encoder", 18),
        ("data", None),
    ],
)
def test_a_value_of_another_type_is_refused(name, value):
    """True is no number, 1 no truth, and 32.0 no number of pixels."""
    assert "of type" in refused(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", np.int64(3)), ("batch", np.uint8(4)), ("lr", np.float64(0.5)), ("lr", np.float32(0.5)),
     ("lr", np.int8(2)), ("blur", np.bool_(True)), ("encoder", np.str_("resnet18"))],
)  # fmt: skip
def test_a_value_of_numpys_types_is_the_same_setting_as_pythons_and_stored_as_it(name, value):
    """A sweep over an array gives such values; JSON could not hold them."""
    config = Config(**{name: value})
    assert config == Config(**{name: value.item()})
    assert type(getattr(config, name)) is type(FIELDS[name].default)


def test_a_whole_number_will_do_where_a_fraction_is_expected_and_becomes_one():
    assert type(Config(temperature=1).temperature) is float


# ── The form of each operation ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "forms"),
    [
        ("plain", dict.fromkeys(DEFAULT_FORMS, "plain")),
        ("auto", dict.fromkeys(DEFAULT_FORMS, "auto")),
        (METHOD, {"conv": "slabs", "norm": "auto", "pool": "auto", "ntxent": "auto", "views": "auto"}),
        ("ntxent=exact", {"conv": "slabs", "norm": "auto", "pool": "auto", "ntxent": "exact", "views": "auto"}),
        (
            "conv=winograd,views=plain",
            {"conv": "winograd", "norm": "auto", "pool": "auto", "ntxent": "auto", "views": "plain"},
        ),
    ],
)
def test_a_method_gives_a_form_to_every_kind(method, forms):
    assert {kind: method_of(kind, Config(method=method).method) for kind in DEFAULT_FORMS} == forms


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("fast", "plain, auto, or pairs kind=form with the kinds conv, norm, pool, ntxent, views; not 'fast'"),
        ("", "plain, auto, or pairs kind=form with the kinds conv, norm, pool, ntxent, views; not ''"),
        ("convolution=plain", "kinds conv, norm, pool, ntxent, views; not 'convolution=plain'"),
        ("plain,ntxent=exact", "kinds conv, norm, pool, ntxent, views; not 'plain,ntxent=exact'"),
        ("conv=direct", "one of plain, slabs, padded, winograd, auto for conv; not 'direct'"),
        ("conv=plain,norm=slabs", "one of plain, fused, auto for norm; not 'slabs'"),
        ("conv=", "one of plain, slabs, padded, winograd, auto for conv; not ''"),
        (
            "conv=plain,conv=slabs",
            "pairs that name each of conv, norm, pool, ntxent, views once; not 'conv=plain,conv=slabs'",
        ),
    ],
)
def test_a_kind_or_a_form_that_does_not_exist_is_refused_with_those_that_do(method, says):
    assert refused(method=method).endswith(says)


def test_the_kinds_of_the_settings_are_those_of_the_layers_each_with_a_default_that_it_has():
    assert METHODS.keys() == DEFAULT_FORMS.keys()
    assert all(form in METHODS[kind] for kind, form in DEFAULT_FORMS.items())
    assert all({"plain", "auto"} <= set(forms) for forms in METHODS.values())
    assert all(method_of(kind, METHOD) == form for kind, form in DEFAULT_FORMS.items())


def test_the_names_that_the_settings_spell_are_those_of_the_kinds():
    """Each kind refuses a name with the list of those it has: every name that is spelled must be among them."""
    z = np.eye(4, dtype=np.float32)
    for form in METHODS["ntxent"]:
        with pytest.raises(RuntimeError, match="CuPy") if form.startswith("cuda") else nullcontext():
            assert nt_xent(z, z, method=form).shape == ()
    x, w = np.ones((4, 4, 2, 3), np.float32), np.ones((3, 3, 3, 5), np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    for form in METHODS["conv"]:
        assert ops.conv2d(x, w, padding=1, method=form).shape == (4, 4, 2, 5)
    for form in METHODS["pool"]:
        assert ops.max_pool2d(x, kernel=2, stride=2, method=form).shape == (2, 2, 2, 3)
    for form in METHODS["norm"]:
        y = ops.batch_norm(x, ones, zeros, mean=zeros, variance=ones, batch=False, method=form)
        assert y.shape == x.shape
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for form in METHODS["views"]:
        assert batches.two_views(images, np.random.default_rng(0), 8, method=form)[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize("kind", ["conv", "norm", "pool", "views"])
def test_no_form_of_a_kind_is_missing_from_the_settings(kind):
    """The forms of NT-Xent are listed when it refuses one."""
    module = {"views": "minisimclr.views.augment"}.get(kind, f"minisimclr.ops.{kind}")
    forms = getattr(importlib.import_module(module), "METHODS", None)
    if forms is None:
        pytest.skip(f"{module} has no METHODS yet")
    assert set(METHODS[kind]) == set(forms)


def test_no_form_of_the_loss_is_missing_from_the_settings():
    z = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="method must be one of") as error:
        nt_xent(z, z, method="nonsense")
    listed = re.findall(r"[\w-]+", str(error.value).partition("one of")[2].partition("not '")[0])
    assert set(listed) - {"or"} == set(METHODS["ntxent"]) - {"reference"}


@pytest.fixture
def narrow(monkeypatch):
    """A ResNet-18 of 8 channels in place of 64: a 64th of the weights."""
    monkeypatch.setitem(ENCODERS, "resnet18", lambda **options: resnet18(**{"base": 8, **options}))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("conv", ["plain", "slabs", "winograd", "auto"])
def test_the_method_reaches_every_layer(conv):
    method = f"conv={conv},norm=plain,pool=plain,ntxent=exact"
    model = build_model(Config(method=method, encoder="resnet18", stem="imagenet", size=32))
    layers = [module for _, module in model.modules()]
    assert {layer.method for layer in layers if isinstance(layer, Conv2d)} == {conv}
    assert {layer.method for layer in layers if isinstance(layer, BatchNorm2d)} == {"plain"}
    assert (model.encoder.pool, model.method) == ("plain", "exact")
    with no_grad():
        assert np.isfinite(model(np.ones((2, 32, 32, 3), np.float32))[1].data).all()


def test_the_dtype_of_products_reaches_every_layer_that_has_products():
    model = build_model(Config(), np.dtype(np.float16))
    layers = [module for _, module in model.modules() if isinstance(module, (Conv2d, Linear))]
    assert {layer.product_dtype for layer in layers} == {np.dtype(np.float16)}
    assert {layer.product_dtype for _, layer in build_model(Config()).modules() if hasattr(layer, "product_dtype")} == {
        None
    }


def test_an_encoder_takes_the_setting_too_and_the_steps_views_their_form(monkeypatch):
    assert resnet18(base=4, method="conv=winograd").layer1.state_dict().keys()
    asked = []
    monkeypatch.setattr(batches, "two_views", lambda *args: asked.append(args[6]))
    images = np.zeros((4, 8, 8, 3), np.uint8)
    batches.step_views(Config(size=8, batch=2, method="views=plain"), images)(0)
    assert asked == ["plain"]


# ── What is stored ────────────────────────────────────────────────────────────────────────────────


def test_settings_survive_json():
    config = Config(temperature=0.07, blur=True, seed=2**63 - 1, encoder="resnet18", lr=1)
    assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_settings_that_are_not_stored_have_their_defaults():
    assert Config.from_dict({"seed": 3}) == Config(seed=3)


@pytest.mark.parametrize(("conv", "form"), [("direct", "slabs"), ("winograd", "winograd"), ("auto", "auto")])
def test_the_setting_conv_of_version_0_1_is_read_as_a_method(conv, form):
    assert Config.from_dict({"seed": 3, "conv": conv}) == Config(seed=3, method=f"conv={form}")


@pytest.mark.parametrize("settings", [{"conv": "fast"}, {"conv": "direct", "method": "plain"}])
def test_a_conv_that_never_existed_or_stands_beside_a_method_is_refused(settings):
    with pytest.raises(ValueError, match="conv"):
        Config.from_dict(settings)


def test_settings_stored_before_there_was_a_choice_have_the_default():
    stored = Config().as_dict()
    del stored["method"]
    assert Config.from_dict(stored).method == "conv=slabs"


def test_each_kind_has_its_own_forms_and_no_others():
    forms = {form for names in METHODS.values() for form in names}
    for kind, own in METHODS.items():
        for form in forms:
            if form in own:
                assert method_of(kind, f"{kind}={form}") == form
            else:
                with pytest.raises(ValueError, match=f"for {kind}; not '{form}'"):
                    method_of(kind, f"{kind}={form}")


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


@pytest.mark.usefixtures("narrow")
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
