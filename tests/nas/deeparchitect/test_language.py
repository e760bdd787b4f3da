"""The language: counts, histories, propagation, independence of what is written and what is chosen, refusals."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from etude.nas.deeparchitect import (
    Affine,
    BasicModule,
    BatchNorm,
    Bisection,
    Concat,
    Conv2d,
    Dependent,
    Dropout,
    Empty,
    InvalidModel,
    Layer,
    MaxPool2d,
    MaybeSwap,
    Optional,
    Or,
    ReLU,
    Repeat,
    RepeatTied,
    Residual,
    Tanh,
    UserHyperparams,
    deepconv,
    enumerate_space,
    hyperparameters,
    mlp,
    model_digest,
    replay,
    resnet,
    tfref,
)

SMALL = Concat(
    [
        UserHyperparams(lr=[0.1, 0.01]),
        Repeat(Concat([Affine([2, 3]), MaybeSwap(ReLU(), BatchNorm())]), [1, 2]),
        Optional(Residual(Or([Affine([2, 5]), Dropout([0.5, 0.9])]))),
        Affine(3),
    ]
)


def models(space, in_shape):
    return [module.repr_model() for _, module in enumerate_space(space, in_shape)]


def test_counts_of_the_papers_spaces():
    assert tfref(10).count() == 5 * 3 * 5 * 3 * 3 * 3 == 2025
    assert deepconv(10).count() == 60_466_176
    assert hyperparameters("light").count() == 128
    assert hyperparameters("heavy").count() == 4096
    assert mlp(10).count() == 64 * 360**2
    r = 17_496
    repeated = r + r**2 + r**4 + r**8
    assert resnet(10).count() == repeated * (1 + 2 * repeated)
    assert tfref(10, width=8).count() == 2025


def test_tfref_has_2025_networks_by_enumeration():
    space = tfref(2, width=16)
    assert sum(1 for _ in enumerate_space(space, (1, 4, 4))) == 2025


def test_counts_add_multiply_and_are_powers():
    b = Affine([1, 2, 3])
    assert Repeat(b, [1, 2, 4]).count() == 3 + 9 + 81 == 93
    assert RepeatTied(b, [1, 2, 4]).count() == 9
    assert Or([b, Dropout([0.5, 0.9])]).count() == 5
    assert Concat([b, Dropout([0.5, 0.9]), ReLU(), Affine(7)]).count() == 6
    assert MaybeSwap(b, ReLU()).count() == 6
    assert Optional(b).count() == 4
    assert Residual(b).count() == 3


@pytest.mark.parametrize(
    "space",
    [
        SMALL,
        Repeat(Affine([1, 2, 3]), [1, 2]),
        RepeatTied(Concat([Affine([1, 2]), Optional(ReLU())]), [1, 3]),
        Concat([Affine([1, 2]), Bisection(Or([Affine([4, 5, 6]), Empty()])), Affine([7, 8])]),
        Concat([UserHyperparams(deep=[0, 1]), Dropout(Dependent(lambda deep: [0.5, 0.9][: 1 + deep], on="deep"))]),
    ],
)
def test_count_is_the_number_of_histories(space):
    histories = [history for history, _ in enumerate_space(space, (4,))]
    assert len(set(histories)) == len(histories) == space.count()
    halved = Bisection(space)
    assert halved.count() == space.count()
    assert sorted(map(repr, models(halved, (4,)))) == sorted(map(repr, models(space, (4,))))


def test_every_network_has_the_shape_it_says_and_its_history_leads_back_to_it():
    for history, module in enumerate_space(SMALL, (4,)):
        network = module.compile().eval()
        assert network(torch.randn(5, 4)).shape == (5, *module.out_shape())
        again = replay(SMALL, (4,), history)
        assert again.repr_model() == module.repr_model()
        assert again.hyperparameters == module.hyperparameters
        assert model_digest(again, 3) == model_digest(module, 3) != model_digest(module, 4)


def test_no_decision_has_one_value():
    rng = np.random.default_rng(0)
    for space, in_shape in ((SMALL, (4,)), (resnet(3, width=16), (3, 12, 12)), (Bisection(SMALL), (4,))):
        for _ in range(20):
            module = space.fresh().initialize(in_shape)
            while not module.is_specified():
                name, values = module.get_choices()
                assert len(values) >= 2
                assert "." in name
                module.choose(int(rng.integers(len(values))))


def test_a_space_of_one_network_is_specified_at_once():
    module = Concat([Affine(3), Or([ReLU()]), Repeat(Affine([2]), [1]), Conv2dOrNot()]).initialize((4,))
    assert module.is_specified()
    assert module.out_shape() == (2,)


def Conv2dOrNot():
    return Or([Empty()])


def test_decisions_come_in_the_order_of_the_arguments_and_of_the_network():
    module = Concat([Conv2d([8, 16], [1, 3], [1, 2], ["SAME", "VALID"]), Affine([2, 3])]).initialize((3, 9, 9))
    names = []
    while not module.is_specified():
        names.append(module.get_choices()[0])
        module.choose(1)
    conv = [f"Conv2d-1.{name}" for name in ("filters", "kernel", "stride", "padding")]
    assert names == [*conv, "Affine-1.units"]


def test_names_are_unique_within_a_network():
    module = replay(Repeat(Affine([1, 2]), [3]), (4,), [0, 1, 0])
    assert [part.name for part in module._made()] == ["Affine-1", "Affine-2", "Affine-3"]


def test_copies_take_their_own_values_and_tied_ones_the_same():
    entries = replay(Repeat(Affine([1, 2, 3]), [1, 3]), (4,), [1, 0, 2, 1]).repr_model()
    assert [dict(entry[1:])["units"] for entry in entries] == [1, 3, 2]
    tied = replay(RepeatTied(Concat([Affine([1, 2, 3]), Dropout([0.5, 0.9])]), [1, 3]), (4,), [1, 2, 0])
    assert [dict(entry[1:]).get("units") for entry in tied.repr_model()] == [3, None] * 3
    weights = [layer.weight for layer in tied.compile().modules() if isinstance(layer, nn.Linear)]
    assert [tuple(weight.shape) for weight in weights] == [(3, 4), (3, 3), (3, 3)]
    assert not torch.equal(weights[1], weights[2])


def test_two_networks_of_a_space_do_not_talk_to_each_other():
    shared = Affine([2, 3])  # one object in two branches and in two networks
    space = Concat([Or([shared, Concat([shared, shared])]), shared, UserHyperparams(lr=[1, 2])])
    rng = np.random.default_rng(0)
    all_histories = [history for history, _ in enumerate_space(space, (5,))]
    for _ in range(30):
        wanted = [all_histories[int(rng.integers(len(all_histories)))] for _ in range(2)]
        both = [space.fresh().initialize((5,)) for _ in wanted]
        left = [list(history) for history in wanted]
        while any(left):
            turn = int(rng.integers(2))
            if left[turn]:
                both[turn].choose(left[turn].pop(0))
        for module, history in zip(both, wanted):
            alone = replay(space, (5,), history)
            assert module.repr_model() == alone.repr_model()
            assert module.hyperparameters == alone.hyperparameters


def test_bisection_halves_until_one_value_is_left():
    space = Bisection(Affine(list(range(1, 33))))
    for history, module in enumerate_space(space, (4,)):
        assert len(history) == 5
        assert module.out_shape() == (1 + int("".join(map(str, history)), 2),)
    three = Bisection(Affine([7, 8, 9]))
    assert {history: module.out_shape()[0] for history, module in enumerate_space(three, (4,))} == {
        (0,): 7, (1, 0): 8, (1, 1): 9,
    }  # fmt: skip
    assert three.initialize((4,)).get_choices() == ("Affine-1.units", [(7,), (8, 9)])


def test_residual_models_that_differ_inside_print_and_hash_differently():
    space = Residual(Concat([ReLU(), Affine([2, 3]), Affine([4, 5])]))
    found = models(space, (4,))
    assert len(set(map(repr, found))) == 4
    assert len({model_digest(module) for _, module in enumerate_space(space, (4,))}) == 4


def test_dependent_domains_follow_earlier_values():
    block = Conv2d([4, 8], [3, 5], strides=Dependent(lambda kernel: [1] if kernel == 3 else [1, 2], on="kernel"))
    seen = [tuple(dict(entry[1:])[name] for name in ("kernel", "stride")) for (entry,) in models(block, (1, 9, 9))]
    assert sorted(seen) == sorted(2 * [(3, 1), (5, 1), (5, 2)])
    assert block.count() == 6
    widths = UserHyperparams(width=[2, 3], depth=[1, 2])
    space = Concat([widths, Affine(Dependent(lambda width: [width, 2 * width], on="width")), Affine(9)])
    units = {(m.hyperparameters["width"], m.repr_model()[1][1][1]) for _, m in enumerate_space(space, (4,))}
    assert units == {(2, 2), (2, 4), (3, 3), (3, 6)}
    assert space.count() == 8
    uneven = Concat([widths, Repeat(Affine(Dependent(lambda width: list(range(1, width)), on="width")), [2])])
    assert uneven.count() == sum(1 for _ in enumerate_space(uneven, (4,))) == 2 * (1 + 4)


def test_a_dependent_domain_needs_what_it_depends_on():
    lonely = Affine(Dependent(lambda width: [width], on="width"))
    with pytest.raises(ValueError, match=r"Affine-1.units depends on width, published by no UserHyperparams"):
        lonely.fresh().initialize((4,))
    with pytest.raises(ValueError, match="depends on width"):
        lonely.count()
    assert "units=f(width)" in lonely.tree()
    with pytest.raises(ValueError, match="must depend on what is decided before it"):
        Conv2d(Dependent(lambda kernel: [kernel], on="kernel"), [3, 5])
    with pytest.raises(ValueError, match="published twice"):
        Concat([UserHyperparams(lr=[1]), ReLU(), UserHyperparams(lr=[2])])
    with pytest.raises(ValueError, match="lr would be published several times"):
        Repeat(UserHyperparams(lr=[1, 2]), [1, 2])


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return self.weight * x


class Scaled(BasicModule):
    def __init__(self, factors):
        super().__init__(factor=factors)

    def shape_of(self, in_shape, factor):
        return in_shape

    def build(self, in_shape, factor):
        return Scale(factor)


def test_a_users_own_module_is_a_member_of_the_language():
    own = Layer(lambda in_shape, width, bias: nn.Linear(in_shape[-1], width, bias), "Dense", width=[2, 3], bias=[True])
    space = Concat([Scaled([1, 2]), Repeat(own, [1, 2]), Bisection(Layer(Scale, factor=[3, 4, 5])), Layer(nn.PReLU)])
    assert space.count() == 2 * (2 + 4) * 3
    for history, module in enumerate_space(space, (7,)):
        assert module.compile()(torch.randn(2, 7)).shape == (2, *module.out_shape())
        assert replay(space, (7,), history).repr_model() == module.repr_model()
    entry = replay(space, (7,), [1, 0, 1, 1, 0]).repr_model()
    assert entry == (
        ("Scaled", ("factor", 2)), ("Dense", ("width", 3), ("bias", True)), ("Scale", ("factor", 4)), ("PReLU",),
    )  # fmt: skip
    fixed = Layer(nn.Conv1d, out_shape=lambda in_shape, **v: (v["out_channels"], in_shape[1] - 2), in_channels=3,
                  out_channels=[4, 5], kernel_size=3)  # fmt: skip
    assert replay(fixed, (3, 9), [1]).out_shape() == (5, 7)


def test_tracing_a_users_module_draws_no_random_number():
    before = torch.get_rng_state()
    Layer(nn.Linear, in_features=4, out_features=[3]).initialize((4,)).out_shape()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_users_layer_may_not_be():
    with pytest.raises(ValueError, match="needs a name="):
        Layer(lambda: nn.ReLU())
    with pytest.raises(TypeError, match=r"must give an nn.Module, got int"):
        Layer(lambda: 3, "three").initialize((4,))
    with pytest.raises(InvalidModel, match=r"Linear-1|Layer-1"):
        Layer(nn.Linear, in_features=5, out_features=3).initialize((4,))
    with pytest.raises(TypeError, match=r"Layer wraps your own|Type-check"):
        Concat([nn.ReLU()])


def test_spaces_print_as_trees():
    space = Concat([Affine([2, 3]), Optional(Dropout(0.5)), UserHyperparams(lr=[0.1, 0.01])])
    assert str(space).splitlines() == [
        "Concat  ·8",
        "├─ Affine(units={2, 3}, init=he)  ·2",
        "├─ Optional  ·2",
        "│  ├─ Empty()",
        "│  └─ Dropout(keep=0.5)",
        "└─ UserHyperparams(lr={0.1, 0.01})  ·2",
    ]
    module = replay(space, (4,), [1, 0, 0])
    assert str(module).splitlines() == [
        "Concat", "├─ Affine(units=3, init=he)", "├─ Optional", "│  └─ Empty()", "└─ UserHyperparams(lr=0.1)",
    ]  # fmt: skip
    assert replay(space, (4,), [1, 1, 0]).repr_model()[1] == ("Dropout", ("keep", 0.5))


def test_modules_travel_between_processes():
    module = replay(SMALL, (4,), next(enumerate_space(SMALL, (4,)))[0])
    assert pickle.loads(pickle.dumps(module)).repr_model() == module.repr_model()


@pytest.mark.parametrize(
    "values", [[], (), np.array([]), itertools.count(), (n for n in (1, 2)), {1, 2}, {1: 2}, np.random.default_rng(0)]
)
def test_a_domain_must_be_a_finite_sequence(values):
    for kind in (Affine, Dropout, lambda v: UserHyperparams(lr=v), lambda v: Repeat(ReLU(), v)):
        with pytest.raises(ValueError, match=r"empty|finite sequence"):
            kind(values)


def test_what_is_refused():
    with pytest.raises(ValueError, match="empty list"):
        Or([])
    with pytest.raises(ValueError, match="holds a value twice"):
        Affine([3, 4, 3])
    with pytest.raises(ValueError, match=r"integers of at least 1, got \[0, 2\]"):
        Repeat(ReLU(), [0, 2])
    with pytest.raises(ValueError, match="at least one hyperparameter"):
        UserHyperparams()
    module = Affine([1, 2])
    for call in (module.get_choices, module.is_specified, module.out_shape, module.compile):
        with pytest.raises(RuntimeError, match="Affine is not initialised"):
            call()
    with pytest.raises(ValueError, match=r"positive integers, such as \(3, 32, 32\), got \(0,\)"):
        module.fresh().initialize((0,))
    module.initialize((4,))
    with pytest.raises(RuntimeError, match="Affine-1 is initialised already"):
        module.initialize((4,))
    with pytest.raises(ValueError, match=r"Affine-1.units has 2 values: choose an index in 0..1, got 2"):
        module.choose(2)
    with pytest.raises(ValueError, match="got -1"):
        module.choose(-1)
    with pytest.raises(RuntimeError, match=r"Affine-1.compile needs every decision taken; Affine-1.units"):
        module.compile()
    module.choose(1)
    with pytest.raises(RuntimeError, match="Affine-1 is specified"):
        module.get_choices()
    with pytest.raises(RuntimeError, match="Affine-1 is specified"):
        module.choose(0)
    with pytest.raises(ValueError, match="specified after 1"):
        replay(Affine([1, 2]), (4,), [0, 0])
    with pytest.raises(ValueError, match=r"with Affine-1.units undecided"):
        replay(Affine([1, 2]), (4,), [])


def test_shapes_that_do_not_fit_name_the_module():
    with pytest.raises(InvalidModel, match=r"MaxPool2d-1: a window of 5 does not fit on a map of 4 x 4"):
        MaxPool2d(5, 1, "VALID").initialize((1, 4, 4))
    with pytest.raises(InvalidModel, match=r"Conv2d-1: needs an input of shape \(C, H, W\), got \(2,\)"):
        Concat([Affine(2), Conv2d(3, 3)]).initialize((1, 4, 4))
    space = Concat([MaxPool2d([2, 3], 2, "VALID"), MaxPool2d([2, 3], 1, "VALID"), Tanh()])
    assert space.count() == 4
    assert len(models(space, (1, 5, 5))) == 2  # on the 2 x 2 that are left a window of 3 has no room
