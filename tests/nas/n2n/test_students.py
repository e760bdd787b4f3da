"""Students: nothing of the teacher's weights, the right shapes and counts, blocks that stay residual."""

import copy
import pickle

import pytest
import torch
from torch import nn

from etude.nas.n2n import (
    InvalidStudent,
    Removal,
    Shrinkage,
    chain,
    count_parameters,
    digest,
    initialise,
    remove_layers,
    shrink_layers,
)
from etude.nas.n2n.students import scaled
from etude.nn.resnet import ResidualBlock, ResNet

GREY, COLOUR = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 16, 16)


def small_chain():
    return chain(((6, 6), (12, 12)), num_classes=10, in_channels=1, size=(8, 8))


def small_resnet(**options):
    return ResNet(blocks=[2, 1], widths=[4, 24], num_classes=10, small_images=True, **options)


CASES = [(small_chain, GREY), (small_resnet, COLOUR), (lambda: small_resnet(bottleneck=True), COLOUR)]


@pytest.mark.parametrize(("make", "example"), CASES)
def test_keeping_all_rebuilds_the_same_network_with_new_weights(make, example):
    model = make()
    before = copy.deepcopy(model.state_dict())
    count = len(Removal(model, example).table)
    same = [remove_layers(model, torch.ones(count).long(), example)]
    same.append(shrink_layers(model, torch.ones(count, 5), example))
    for student in same:
        assert repr(student) == repr(model)
        assert count_parameters(student) == count_parameters(model)
        weights = dict(model.named_parameters())
        pairs = [(new, weights[name]) for name, new in student.named_parameters() if new.ndim == 4]
        assert not any(torch.equal(new, old) or new.data_ptr() == old.data_ptr() for new, old in pairs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("make", "example"), CASES)
def test_random_masks_keep_the_output_or_are_invalid(make, example):
    build = Removal(make(), example)
    generator = torch.Generator().manual_seed(0)
    valid = 0
    for _ in range(67):  # 200 and one over the three networks
        keep = torch.randint(2, (len(build.table),), generator=generator)
        try:
            student = build(keep)
        except InvalidStudent:
            continue
        valid += 1
        assert student(torch.rand_like(example)).shape == (2, 10)
    assert valid > 30


@pytest.mark.parametrize(("make", "example"), CASES)
def test_random_factors_keep_the_output_or_are_invalid(make, example):
    build = Shrinkage(make(), example, min_channels=2, fix=(nn.MaxPool2d,))
    generator = torch.Generator().manual_seed(0)
    valid = 0
    for _ in range(30):
        try:
            student = build(torch.randint(10, (len(build.table), 5), generator=generator))
        except InvalidStudent:
            continue
        valid += 1
        assert student(torch.rand_like(example)).shape == (2, 10)
        assert count_parameters(student) <= build.params
    assert valid > 5


def test_parameters_are_the_sum_by_hand():
    build = Removal(small_chain(), GREY, fix=(nn.MaxPool2d,))
    keep = torch.zeros(len(build.table)).long()
    # The first convolution, 1 -> 6; the pool; the Linear on 6 x 4 x 4.
    assert count_parameters(build(keep)) == (6 * 9 + 6) + (6 * 16 * 10 + 10)
    keep[7] = 1  # the third convolution, 6 -> 12
    student = build(keep)
    assert count_parameters(student) == (6 * 9 + 6) + (6 * 12 * 9 + 12) + (12 * 16 * 10 + 10)
    assert isinstance(student[3], nn.Identity)
    assert build.changes(keep)[0] == "removed 1 (BatchNorm2d)"
    assert len(build.changes(keep)) == 10


def test_an_emptied_block_is_the_identity_or_its_shortcut():
    model = small_resnet(bottleneck=True)  # 4 -> 16 in the first block without a stride
    build = Removal(model, COLOUR)
    keep = torch.tensor([not name.startswith("layer1.") for name in build.table.names])
    student = build(keep)
    assert isinstance(student.layer1[1], nn.Identity)
    assert [type(module) for module in student.layer1[0]] == [nn.Conv2d, nn.BatchNorm2d]
    assert student.layer1[0][0].weight.shape == (16, 4, 1, 1)
    plain = Removal(small_resnet(), COLOUR)
    emptied = plain(torch.tensor([not name.startswith("layer1.1.") for name in plain.table.names]))
    assert isinstance(emptied.layer1[0], ResidualBlock)
    assert isinstance(emptied.layer1[1], nn.Identity)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(emptied.layer1[1](x), x)


def test_a_block_with_a_bare_shortcut_keeps_its_width_and_another_takes_its_shortcut_along():
    build = Shrinkage(small_resnet(), COLOUR, min_channels=1)
    factors = torch.ones(len(build.table), 5)
    place = build.table.names.index
    factors[place("conv1"), 3] = 0.5  # 4 -> 2 filters: both blocks of the first stage follow
    factors[place("layer1.0.conv2"), 3] = 0.1  # tied: without effect
    factors[place("layer2.0.conv2"), 3] = 0.5
    student = build.apply(factors)
    assert student.layer1[0].conv2.weight.shape == (2, 4, 3, 3)
    assert student.layer1[1].conv2.weight.shape == (2, 4, 3, 3)
    assert student.layer2[0].conv2.weight.shape == (12, 24, 3, 3)
    assert student.layer2[0].downsample[0].weight.shape == (12, 2, 1, 1)
    assert student.fc.weight.shape == (10, 12)


class Early(nn.Module):
    """A residual block whose shortcut runs before its main path, and whose stem has its own addition in the root."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.short, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6 * 64, 10)

    def forward(self, x):
        x = self.stem(x)
        skip = self.short(x)
        return self.head((self.conv(x) + skip).flatten(1))


def test_a_shortcut_that_runs_first_follows_and_a_block_of_the_root_is_never_emptied():
    build = Shrinkage(Early(), GREY, min_channels=1)
    factors = torch.ones(len(build.table), 5)
    factors[1, 3] = 0.5
    assert build.apply(factors).short.weight.shape == (3, 6, 1, 1)
    with pytest.raises(ValueError, match="no layer that can be removed"):
        Removal(Early(), GREY)


def test_sizes_follow_the_rules_of_rounding():
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 30, 3, padding=1), nn.Flatten(),
                          nn.Linear(30 * 64, 10))  # fmt: skip
    factors = torch.ones(4, 5)
    factors[0] = torch.tensor([1, 0.7, 0.1, 0.1, 1.0])
    factors[2, 3] = 0.7
    student = shrink_layers(model, factors, GREY)
    assert student[0].kernel_size == (2, 2)  # int(2.1)
    assert student[0].stride == (1, 1)
    assert student[0].out_channels == 10  # max(6, 10)
    assert student[0].padding == (1, 1)
    assert student[2].out_channels == 21  # int(21.0), though 0.7 in float32 is less
    assert student[2].in_channels == 10
    assert [scaled(90, 0.7, 1), scaled(3, 0.3, 1), scaled(1, 0.9, 0), scaled(8, 0.1, 10)] == [63, 1, 0, 8]


def test_a_linear_of_too_many_inputs_is_invalid():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(64), nn.Flatten(), nn.Linear(16, 10))
    with pytest.raises(InvalidStudent, match="would have 65536 inputs"):
        remove_layers(model, torch.tensor([1, 0, 1]), torch.zeros(1, 1, 128, 128))
    narrow = nn.Sequential(nn.Conv2d(1, 20, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10))
    factors = torch.ones(3, 5)
    factors[0, 3] = 0.1
    with pytest.raises(InvalidStudent, match="would have 2 inputs"):
        shrink_layers(narrow, factors, GREY, min_channels=2)


def test_shapes_that_do_not_fit_are_invalid():
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Linear(512, 10)

        def forward(self, x):
            return self.c(self.b(self.a(x)).view(-1, 512))

    with pytest.raises(InvalidStudent, match=r"the output has shape \(1, 10\)"):
        remove_layers(Hard(), torch.tensor([1, 0, 1]), GREY)


def test_bad_actions_are_refused():
    model = small_chain()
    with pytest.raises(ValueError, match="keep must be 14 zeros and ones"):
        remove_layers(model, torch.ones(3).long(), GREY)
    with pytest.raises(ValueError, match=r"14 x 5 numbers in \(0, 1\]"):
        shrink_layers(model, torch.full((14, 5), 1.5), GREY)
    with pytest.raises(ValueError, match="min_channels must be positive"):
        Shrinkage(model, GREY, min_channels=0)
    with pytest.raises(ValueError, match="no layer that can be removed"):
        Removal(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), GREY)
    with pytest.raises(ValueError, match="no layer that can shrink"):
        Shrinkage(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), GREY)


def test_the_digest_knows_the_architecture_and_not_the_weights():
    build = Removal(small_chain(), GREY)
    keep = torch.ones(14).long()
    one, two = build(keep), build(keep)
    assert digest(one) == digest(two) != digest(one, seed=1)
    keep[4] = 0
    assert digest(build(keep)) != digest(one)
    initialise(one, 3)
    initialise(two, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_students_and_builders_can_be_pickled():
    build = pickle.loads(pickle.dumps(Removal(small_resnet(), COLOUR, skip_support=True)))
    assert build.table.features.shape[1] == 7
    student = pickle.loads(pickle.dumps(build(torch.ones(len(build.table)).long())))
    assert type(student) is ResNet
