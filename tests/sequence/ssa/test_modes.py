import copy
import math

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples
from etude.loop import fit
from etude.nn.transformer import SelfAttention
from etude.sequence.ssa import (
    SSASchedule,
    SubsampledAttention,
    ambiguity,
    apply_ssa,
    dense_attention,
    disagreement,
    layers_of,
    pathway_curve,
    plot_pathways,
    remove_ssa,
    self_ensemble,
    subsampled,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Classifier(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = SubsampledAttention(8, 2, causal=False, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head((x + self.attention(x)).mean(1))


def model(**options):
    torch.manual_seed(0)
    return Classifier(**options).eval()


def inputs(n=24):
    return torch.randn(4, n, 8, generator=generator(3))


def test_an_ensemble_of_one_is_one_draw_and_of_dense_ones_dense():
    net, x = model(), inputs()
    with subsampled(net, generator(5)):
        one = net(x).softmax(-1)
    assert torch.equal(self_ensemble(net, x, 1, generator=generator(5)), one)
    whole = self_ensemble(net, x, 3, generator=generator(5), fraction=1)
    torch.testing.assert_close(whole, net(x).softmax(-1))
    assert not net.training


def test_probabilities_are_averaged_not_logits():
    net, x = model(), inputs()
    with subsampled(net, generator(5)):
        draws = torch.stack([net(x) for _ in range(4)])
    torch.testing.assert_close(self_ensemble(net, x, 4, generator=generator(5)), draws.softmax(-1).mean(0))
    torch.testing.assert_close(self_ensemble(net, x, 4, reduce="mean", generator=generator(5)), draws.mean(0))
    target = torch.tensor([0, 1, 2, 0])
    each = draws.log_softmax(-1)[:, range(4), target].mean(0)
    mean = draws.softmax(-1).mean(0)[range(4), target].log()
    assert (mean >= each).all()  # Jensen
    for options in ({"reduce": "median"}, {"num_samples": 0}):
        with pytest.raises(ValueError, match="reduce"):
            self_ensemble(net, x, **options)


def test_the_schedule_ends_dense():
    net = model(fraction=0.25)
    schedule = SSASchedule(net, 10, dense_tail=0.2, fraction=lambda step: 0.5 if step < 4 else 0.25)
    modes, fractions = [], []
    for _ in range(10):
        modes.append(net.attention.ssa.samples(True))
        fractions.append(net.attention.ssa.fraction)
        schedule.step()
    assert modes == [True] * 8 + [False] * 2
    assert fractions[:4] == [0.5] * 4
    assert fractions[4:8] == [0.25] * 4
    for arguments in ((0,), (5, 1.5)):
        with pytest.raises(ValueError, match="total_steps"):
            SSASchedule(net, *arguments)


@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_any_models_attention_can_sample_and_stop(kind):
    torch.manual_seed(0)
    if kind == "torch":
        net = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        )
    else:
        net = nn.Sequential(SelfAttention(8, 2), nn.Linear(8, 8), SelfAttention(8, 2))
    x, keys = inputs(), set(net.state_dict())
    net.train()
    dense = net(x)
    assert len(apply_ssa(net, 0.25, sigma=2)) == 2 == len(layers_of(net))
    assert set(net.state_dict()) == keys
    one, other = net(x), net(x)
    assert not torch.equal(one, other)
    with dense_attention(net):
        torch.testing.assert_close(net(x), dense)
    with subsampled(net, generator(1), fraction=0.5):
        again = net(x)
    with subsampled(net, generator(1), fraction=0.5):
        assert torch.equal(net(x), again)
    with pytest.raises(ValueError, match="already"):
        apply_ssa(net)
    remove_ssa(net)
    torch.testing.assert_close(net(x), dense)
    with pytest.raises(ValueError, match="no layer"):
        layers_of(net)


def test_causal_masks_of_torchs_layers_stay_causal():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train()
    apply_ssa(net, 0.25, sigma=2)
    mask = nn.Transformer.generate_square_subsequent_mask(16)
    x = inputs(16)
    other = x.clone()
    other[:, 9] += 1
    outputs = []
    for given in (x, other):
        with subsampled(net, generator(2)):
            outputs.append(net(given, src_mask=mask, is_causal=True))
    moved = (outputs[0] - outputs[1]).abs().amax((0, 2)) > 1e-6
    assert not moved[:9].any()
    assert moved[9]


def test_attention_that_gives_its_weights_cannot_sample():
    net = nn.MultiheadAttention(8, 2, batch_first=True).train()
    apply_ssa(net, 0.5)
    x = inputs(8)
    with pytest.raises(ValueError, match="need_weights"):
        net(x, x, x)
    assert net(x, x, x, need_weights=False)[0].shape == x.shape
    with pytest.raises(ValueError, match="no attention"):
        apply_ssa(nn.Linear(2, 2))


def test_an_error_inside_leaves_no_sampling_behind():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("inside")

    net = nn.Sequential(Broken()).train()
    apply_ssa(net, 0.5, where=lambda name, module: name == "0")
    with pytest.raises(RuntimeError, match="inside"):
        net(inputs(8))
    q = torch.randn(1, 1, 8, 4)
    first = nn.functional.scaled_dot_product_attention(q, q, q)
    assert torch.equal(first, nn.functional.scaled_dot_product_attention(q, q, q))


def test_a_copy_samples_too_and_training_works():
    net = copy.deepcopy(model(fraction=0.25)).train()
    examples = Examples(inputs(), torch.tensor([0, 1, 2, 0]))
    result = fit(net, examples, torch.optim.Adam(net.parameters(), lr=0.05), steps=30, batch_size=4)
    assert result.losses[-1] < result.losses[0]


def test_the_pathway_curve_and_its_plot():
    net, x = model(), inputs(32)
    net.train()
    curve = pathway_curve(net, lambda m: float(m(x).detach().square().mean()), (1, 0.5, 0.25), generator=generator())
    assert list(curve) == [1.0, 0.5, 0.25]
    assert len(set(curve.values())) == 3
    assert net.training
    with dense_attention(net.eval()):
        assert curve[1.0] == float(net(x).detach().square().mean())
    assert plot_pathways({"ssa": curve}).axes[0].get_xlabel() == "fraction of the sources"


def test_the_error_of_an_ensemble_is_that_of_its_members_less_their_spread():
    outputs, targets = torch.randn(5, 20, generator=generator()), torch.randn(20, generator=generator(1))
    found = ambiguity(outputs, targets)
    assert found.ensemble == pytest.approx(found.members - found.diversity, abs=1e-6)


def test_disagreement_is_the_share_of_pairs_that_differ():
    votes = torch.tensor([[0, 1], [0, 0], [1, 0]])
    probabilities = nn.functional.one_hot(votes, 2).float()
    assert disagreement(probabilities) == pytest.approx((0.5 + 1 + 0.5) / 3)
    with pytest.raises(ValueError, match="two members"):
        disagreement(probabilities[:1])
    assert math.isclose(disagreement(probabilities[[0, 0]]), 0)
