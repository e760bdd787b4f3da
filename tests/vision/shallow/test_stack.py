"""Both layouts of a residual stack, their shared parameters, and the fused path."""

import pytest
import torch
from torch import nn

from etude.vision.shallow import ACTIVATIONS, ConvBranch, ResidualStack, ShallowNet, count_operators


def made(seed=0, **options):
    torch.manual_seed(seed)
    return ResidualStack(**{"channels": 4, "num_layers": 5} | options)


def images(seed=1, dtype=torch.float32, channels=4, size=7):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [True, False])
def test_one_layer_is_the_same_in_both_layouts(activation, residual):
    deep = made(num_layers=1, activation=activation, residual=residual)
    assert torch.equal(deep(images()), deep.to_parallel()(images()))


def test_layouts_follow_their_definitions():
    deep, x = made(), images()
    expected = x
    for branch in deep.branches:
        expected = expected + branch(expected)
    torch.testing.assert_close(deep(x), expected)
    torch.testing.assert_close(deep.to_parallel()(x), x + sum(branch(x) for branch in deep.branches))
    plain = made(residual=False)
    expected = x
    for branch in plain.branches:
        expected = branch(expected)
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(plain.to_parallel()(x), sum(branch(x) for branch in plain.branches))


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"block": "bottleneck"}])
def test_either_layout_loads_the_other_state_dict(options):
    deep, shallow = made(0, **options), made(1, layout="parallel", **options)
    assert list(deep.state_dict()) == list(shallow.state_dict())
    assert sum(p.numel() for p in deep.parameters()) == sum(p.numel() for p in shallow.parameters())
    shallow.load_state_dict(deep.state_dict())
    torch.testing.assert_close(shallow(images()), deep.to_parallel()(images()))


def test_converted_stacks_share_their_weights():
    deep = made()
    shallow = deep.to_parallel()
    again = shallow.to_sequential()
    assert [id(p) for p in deep.parameters()] == [id(p) for p in shallow.parameters()]
    with torch.no_grad():
        shallow.branches[0].conv.weight.zero_()
    assert torch.equal(deep(images()), again(images()))
    assert deep.layout == again.layout == "sequential"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("chunk", [None, 2])
def test_fused_equals_unfused_in_values_gradients_and_statistics(activation, batch_norm, chunk):
    options = {"activation": activation, "batch_norm": batch_norm, "layout": "parallel"}
    fused, plain = made(**options, chunk=chunk).double(), made(**options, fused=False).double()
    results = []
    for stack in (fused, plain):
        x = images(dtype=torch.float64).requires_grad_()
        out = stack(x)
        out.square().sum().backward()
        evaluated = stack.eval()(x)
        results.append([out, evaluated, x.grad, *(p.grad for p in stack.parameters()), *stack.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_fused_runs_as_one_layer():
    counts = {}
    for fused in (True, False):
        stack = made(layout="parallel", fused=fused)
        with torch.no_grad():
            counts[fused] = count_operators(lambda stack=stack: stack(images()))
    # images() draws once; joined weights and biases, convolution, activation, sum, skip | 5 x (convolution, ReLU, add)
    assert counts == {True: 1 + 6, False: 1 + 15}


@pytest.mark.parametrize("layout", ["sequential", "parallel"])
@pytest.mark.parametrize("fused", [True, False])
def test_checkpointing_changes_no_gradient(layout, fused):
    results = []
    for checkpoint in (True, False):
        stack = made(layout=layout, fused=fused, checkpoint=checkpoint, chunk=2)
        x = images().requires_grad_()
        stack(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in stack.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_branches_matters_to_the_sequential_layout_only():
    deep = made().double()
    turned = ResidualStack(list(deep.branches)[::-1])
    x = images(dtype=torch.float64)
    torch.testing.assert_close(turned.to_parallel()(x), deep.to_parallel()(x), rtol=1e-12, atol=1e-12)
    assert (turned(x) - deep(x)).abs().max() > 0.1


@pytest.mark.parametrize("layout", ["sequential", "parallel"])
def test_zero_branches_are_the_identity(layout):
    stack = made(layout=layout)
    for parameter in stack.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(stack(images()), images())


@pytest.mark.parametrize(("layout", "side"), [("parallel", 3), ("sequential", 7)])
def test_the_receptive_field_grows_with_depth_only_in_sequence(layout, side):
    stack = made(num_layers=3, layout=layout, activation="tanh")
    x = images(size=11).requires_grad_()
    stack(x)[0, 0, 5, 5].backward()
    seen = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [side, side]


def test_the_start_is_he_over_the_root_of_the_depth_in_either_layout():
    weights = []
    for layout in ("sequential", "parallel"):
        stack = made(channels=32, num_layers=8, branch_scale="init", layout=layout)
        weights.append(torch.stack([branch.conv.weight for branch in stack.branches]))
        assert not any(branch.conv.bias.any() for branch in stack.branches)
    assert torch.equal(*weights)
    assert weights[0].std().item() == pytest.approx((2 / (32 * 9) / 8) ** 0.5, rel=0.02)
    normed = made(num_layers=4, branch_scale="init", batch_norm=True)
    assert torch.equal(normed.branches[0].norm.weight, torch.full((4,), 0.5))
    assert made(branch_scale="he").branches[0].conv.weight.std().item() == pytest.approx((2 / 36) ** 0.5, rel=0.2)


def test_branches_of_the_user_do_as_well():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    x = torch.randn(4, 6)
    torch.testing.assert_close(ResidualStack(layers, layout="parallel")(x), x + sum(layer(x) for layer in layers))
    by_function = ResidualStack(channels=4, num_layers=2, block=lambda c: ConvBranch(c, 1, "gelu"))
    assert by_function(images()).shape == images().shape


def test_the_network_has_the_counted_parameters_and_both_layouts():
    deep = ShallowNet(in_chans=1, num_classes=10, channels=16, num_layers=8)
    assert sum(p.numel() for p in deep.parameters()) == 21_290
    x = images(channels=1, size=14)
    out = deep(x)
    assert out.shape == (3, 10)
    assert (deep.to_parallel()(x) - out).abs().max() > 1e-3
    torch.testing.assert_close(deep.to_sequential()(x), out)


def test_the_network_is_saved_and_loaded(tmp_path):
    net = ShallowNet(in_chans=1, num_classes=3, channels=4, num_layers=2, layout="parallel")
    net.save_pretrained(tmp_path)
    again = ShallowNet.from_pretrained(tmp_path)
    x = images(channels=1)
    assert again.body.layout == "parallel"
    assert torch.equal(net(x), again(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(layout="deep"), "layout must be one of sequential, parallel, got 'deep'"),
        (lambda: made(order=0), "order must be at least 1, got 0"),
        (lambda: made(order=2, layout="parallel"), "order 2 is defined for linear branches only, branch 0 is ConvBr"),
        (lambda: made(order=2, residual=False), "order 2 is of the expansion of residual layers"),
        (lambda: made(kernel_size=4), "kernel_size must be odd and positive, got 4"),
        (lambda: made(activation="swish"), "activation must be one of relu.*got 'swish'"),
        (lambda: made(block="dense"), "block must be one of conv, bottleneck or a function, got 'dense'"),
        (lambda: made(channels=0), "channels must be positive, got 0"),
        (lambda: made(num_layers=0), "num_layers must be positive, got 0"),
        (lambda: made(chunk=0), "chunk must be positive, got 0"),
        (lambda: made(branch_scale="small"), "branch_scale must be 'init', 'he' or None, got 'small'"),
        (lambda: made(branch_scale="init", block=lambda c: ConvBranch(c)), "starts the built-in blocks"),
        (lambda: made(batch_norm=True, checkpoint=True), "twice in the running statistics"),
        (lambda: ResidualStack([]), "at least one branch, got none"),
        (lambda: ResidualStack(), "give branches, or channels and num_layers"),
        (lambda: ResidualStack([nn.Identity()], channels=3), "branches come as they are"),
        (lambda: made(layout="parallel")(images(channels=3)), r"expected \(batch, 4, height, width\), got shape"),
        (
            lambda: ResidualStack([nn.Identity(), nn.Linear(7, 5)])(images()),
            r"branch 1 \(Linear\) turns shape \(3, 4, 7, 7\) into \(3, 4, 7, 5\)",
        ),
        (
            lambda: ResidualStack([nn.Linear(7, 5)], layout="parallel")(images()),
            r"branch 0 \(Linear\) turns shape \(3, 4, 7, 7\) into \(3, 4, 7, 5\)",
        ),
        (lambda: ShallowNet(in_chans=0, num_classes=2), "must be positive, got 0, 2, 16, 2, 4"),
        (lambda: ShallowNet(in_chans=3, num_classes=2)(images()), r"expected 3 channels, got .*\(3, 4, 7, 7\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_pixels_are_refused():
    with pytest.raises(TypeError, match=r"must be floating point, got torch.uint8: divide bytes by 255"):
        ShallowNet(in_chans=1, num_classes=2)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
