"""Guidance: Eq. (1) against a plain reference, when the guide runs, what is paired, and what is refused."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nn.resnet import ResNet
from etude.nn.similarity import linear_cka, rsa_similarity
from etude.training.guidance import (
    DeepFCN,
    DeepMLP,
    FeatureTap,
    Guidance,
    ParityRNN,
    ParityTransformer,
    TransformerLM,
    VanillaRNNLM,
    layer_map,
    parity_batch,
)


def guide_network() -> nn.Module:
    torch.manual_seed(1)
    return ResNet(blocks=[1, 1], widths=[4, 6], in_channels=1, num_classes=3, small_images=True)


def target_network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(2)
    return DeepFCN(64, 3, depth=4, width=8, first_width=None, dropout=dropout)


def batch(n: int = 12, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def aligned(guidance: Guidance, target: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with guidance.capture(target):
        target(x)
    return guidance()


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [(5, 10, [0, 2, 4, 7, 9]), (4, 4, [0, 1, 2, 3]), (1, 6, [0]), (3, 1, [0, 0, 0]), (5, 3, [0, 0, 1, 2, 2])],
)
def test_layers_are_spread_evenly_with_halves_to_even(n, m, expected):
    assert layer_map(n, m) == expected


def test_the_ends_of_the_layer_map_meet():
    for n in range(2, 20):
        for m in range(1, 20):
            mapped = layer_map(n, m)
            assert (mapped[0], mapped[-1], len(mapped)) == (0, m - 1, n)
            assert mapped == sorted(mapped)
            assert all(abs(place - i * (m - 1) / (n - 1)) <= 0.5 for i, place in enumerate(mapped))


def test_a_layer_map_needs_layers():
    with pytest.raises(ValueError, match="got 0 of the guide and 3 of the target"):
        layer_map(0, 3)


def reference(target, guide, x, similarity=linear_cka):
    """Eq. (1) by separate passes and a loop."""
    tapped = []
    for model in (target, guide):
        with FeatureTap(model) as features:
            model(x)
        tapped.append(list(features.values()))
    ours, theirs = tapped
    places = [min(round(i * (len(ours) - 1) / (len(theirs) - 1)), len(ours) - 1) for i in range(len(theirs))]
    return [
        1 - similarity(ours[place].flatten(1), features.flatten(1)) for place, features in zip(places, theirs)
    ], places


def test_the_loss_is_the_sum_over_pairs():
    target, guide, (x, _) = target_network(), guide_network().eval(), batch()
    terms, _ = reference(target, guide, x)
    torch.testing.assert_close(aligned(Guidance(guide), target, x), torch.stack(terms).sum())
    torch.testing.assert_close(aligned(Guidance(guide, weight=0.3), target, x), 0.3 * torch.stack(terms).sum())
    torch.testing.assert_close(aligned(Guidance(guide, reduction="mean"), target, x), torch.stack(terms).mean())


def test_the_gradient_is_that_of_the_reference():
    target, guide, (x, _) = target_network(), guide_network().eval(), batch()
    twin = copy.deepcopy(target)
    aligned(Guidance(guide), target, x).backward()
    torch.stack(reference(twin, guide, x)[0]).sum().backward()
    for ours, theirs in zip(target.blocks.parameters(), twin.blocks.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_collisions_are_summed_or_the_last_kept():
    target, guide, (x, _) = target_network(), guide_network().eval(), batch()
    terms, places = reference(target, guide, x)
    assert len(set(places)) < len(places)
    last = dict(zip(places, terms))
    torch.testing.assert_close(aligned(Guidance(guide, on_collision="sum"), target, x), torch.stack(terms).sum())
    guidance = Guidance(guide, on_collision="last")
    torch.testing.assert_close(aligned(guidance, target, x), torch.stack(list(last.values())).sum())
    assert len(guidance.similarities) == len(last)


def test_a_dict_pairs_layers_by_name():
    target, guide, (x, _) = target_network(), guide_network(), batch()
    guidance = Guidance(guide, mapping={"layer1.0.conv2": "blocks.3.0", "avgpool": "blocks.0.0"})
    loss = aligned(guidance, target, x)
    assert list(guidance.similarities) == [("layer1.0.conv2", "blocks.3.0"), ("avgpool", "blocks.0.0")]
    assert loss.item() == pytest.approx(2 - sum(value.item() for value in guidance.similarities.values()), abs=1e-6)


@pytest.mark.parametrize("metric", ["rsa", rsa_similarity])
def test_another_metric_takes_the_place_of_cka(metric):
    target, guide, (x, _) = target_network(), guide_network().eval(), batch()
    terms, _ = reference(target, guide, x, rsa_similarity)
    torch.testing.assert_close(aligned(Guidance(guide, metric=metric), target, x), torch.stack(terms).sum())


@pytest.mark.parametrize("metric", ["cka", "unbiased_cka", "rbf_cka", "rsa", "procrustes", "ridge"])
def test_every_metric_gives_a_gradient(metric):
    target, (x, _) = target_network(), batch()
    aligned(Guidance(guide_network(), metric=metric), target, x).backward()
    gradients = [parameter.grad for parameter in target.blocks[0].parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0


def train(guidance: Guidance | None, steps: int = 3) -> tuple[nn.Module, torch.Tensor]:
    target, (x, y) = target_network(dropout=0.2), batch()
    optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        if guidance is None:
            loss = F.cross_entropy(target(x), y)
        else:
            with guidance.capture(target):
                loss = F.cross_entropy(target(x), y)
            loss = loss + guidance(x)
        loss.backward()
        optimizer.step()
    return target, torch.rand(())


class Counting(nn.Module):
    """Counts the passes of a network."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, x):
        self.passes += 1
        return self.model(x)


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"stop_after": 0}])
def test_no_guidance_is_ordinary_training_bit_for_bit(options):
    guide = Counting(guide_network())
    (plain, drawn), (guided, drawn_too) = train(None), train(Guidance(guide, **options))
    assert guide.passes == 0
    assert drawn == drawn_too
    for ours, theirs in zip(guided.state_dict().values(), plain.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_guidance_changes_training_but_draws_nothing():
    (plain, drawn), (guided, drawn_too) = train(None), train(Guidance(guide_network()))
    assert drawn == drawn_too
    assert not torch.equal(plain.blocks[0][0].weight, guided.blocks[0][0].weight)


def test_after_stop_after_calls_the_guide_no_longer_runs():
    guide = Counting(guide_network())
    guidance = Guidance(guide, stop_after=2)
    target, (x, _) = target_network(), batch()
    losses = [aligned(guidance, target, x) for _ in range(5)]
    assert guide.passes == 2
    assert [loss.item() > 0 for loss in losses] == [True, True, False, False, False]
    assert not guidance.active


def test_calls_without_gradients_measure_and_do_not_count():
    guide = Counting(guide_network())
    guidance = Guidance(guide, stop_after=1)
    target, (x, _) = target_network(), batch()
    aligned(guidance, target, x)
    with torch.no_grad(), guidance.capture(target, measure=True):
        target(x)
        assert guidance().item() > 0
    assert guidance.calls == 1
    assert guide.passes == 2


def test_passes_without_gradients_are_not_captured():
    guidance, target, (x, _) = Guidance(guide_network()), target_network(), batch()
    with guidance.capture(target), torch.no_grad():
        target(x)
        with pytest.raises(RuntimeError, match=r"no captured features.*measure=True"):
            guidance()


def test_the_target_runs_once_a_step():
    target = Counting(target_network())
    guidance, (x, y) = Guidance(guide_network()), batch()
    with guidance.capture(target):
        loss = F.cross_entropy(target(x), y) + guidance()
    loss.backward()
    assert target.passes == 1
    assert int(target.model.blocks[0][1].num_batches_tracked) == 1


def test_the_guide_never_changes_and_asks_for_no_gradient():
    guide = guide_network()
    before = copy.deepcopy(guide.state_dict())
    guidance = Guidance(guide)
    guide.train()  # as a parent module's `train()` would
    train(guidance)
    assert not guide.training
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in guide.parameters())


def test_the_guide_sees_what_the_target_saw_or_what_it_is_given():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = guide_network()

        def forward(self, x):
            seen.append(x)
            return self.network(x)

    guidance, target, (x, _) = Guidance(Watching()), target_network(), batch()
    with guidance.capture(target):
        target(x)
    guidance()
    other = batch(seed=4)[0]
    with guidance.capture(target):
        target(x)
    guidance(other)
    assert seen[0] is x
    assert seen[1] is other


def test_features_tapped_elsewhere_are_taken():
    guidance, target, (x, _) = Guidance(guide_network()), target_network(), batch()
    with FeatureTap(target) as features:
        target(x)
    torch.testing.assert_close(guidance(x, features), aligned(guidance, target, x))


def test_guidance_by_a_copy_of_itself_is_at_its_minimum():
    target = target_network().double().eval()
    x = batch()[0].double()
    loss = aligned(Guidance(copy.deepcopy(target)), target, x)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    # What comes after the last layer that is compared has no gradient at all.
    gradients = [parameter.grad for parameter in target.blocks.parameters() if parameter.grad is not None]
    assert len(gradients) == 14
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-5
    torch.manual_seed(0)
    target = target_network(dropout=0.3)
    assert aligned(Guidance(copy.deepcopy(target)), target.train(), x.float()).item() > 0.01


def test_per_token_sums_over_positions():
    torch.manual_seed(0)
    guide = TransformerLM(5, dim=8, heads=2, layers=1, hidden=8, longest=6)
    target = VanillaRNNLM(5, embedding_dim=4, dim=6, layers=2)
    tokens = torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(0))
    options = {"guide_layers": ["blocks.0.linear1", "blocks.0.norm2"], "target_layers": ["rnns.0", "rnns.1"]}
    expected = 0.0
    with (
        FeatureTap(guide.eval(), options["guide_layers"]) as theirs,
        FeatureTap(target, options["target_layers"]) as ours,
    ):
        guide(tokens)
        target(tokens)
    for a, b in zip(ours.values(), theirs.values()):
        expected += sum(1 - linear_cka(a[:, t], b[:, t]).item() for t in range(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = aligned(Guidance(guide, per_token=True, **options), target, tokens)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert aligned(Guidance(guide, **options), target, tokens).item() < loss.item()


def test_sequences_of_every_pair_of_the_paper_can_be_aligned():
    torch.manual_seed(0)
    tokens, _ = parity_batch(6, longest=9, generator=torch.Generator().manual_seed(0))
    target = ParityTransformer(dim=8, heads=2, layers=2, hidden=8)
    guidance = Guidance(ParityRNN(dim=5, layers=2))
    aligned(guidance, target, tokens).backward()
    assert list(guidance.similarities) == [("rnn", "blocks.0.self_attn")]


def test_mixed_precision_compares_in_single_precision():
    guidance, target, (x, _) = Guidance(guide_network()), target_network(), batch()
    expected = aligned(guidance, target, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = aligned(guidance, target, x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=0.1)


def test_only_the_count_of_calls_is_saved():
    guidance, target, (x, _) = Guidance(guide_network(), stop_after=2), target_network(), batch()
    aligned(guidance, target, x)
    assert guidance.state_dict() == {"calls": 1}
    again = Guidance(guide_network(), stop_after=2)
    again.load_state_dict(guidance.state_dict())
    assert again.active
    aligned(again, target, x)
    assert not again.active


def test_a_guide_and_a_target_without_common_layers_are_refused():
    x = batch()[0].flatten(1)
    layerless = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ValueError, match=r"no layers to compare: the guide gave none.*guide_layers"):
        aligned(Guidance(layerless), target_network(), x)
    with pytest.raises(ValueError, match="no layers to compare: the target gave none"):
        aligned(Guidance(guide_network()), nn.Linear(8, 3), batch()[0])
    guidance = Guidance(guide_network(), mapping={"conv1": "blocks.9.0"})
    with pytest.raises(ValueError, match=r"the target gave no layer 'blocks.9.0'; its layers are blocks.0.0"):
        aligned(guidance, target_network(), batch()[0])


def test_a_batch_too_small_for_cka_is_refused():
    for n in (1, 3):
        target = target_network().eval()
        with pytest.raises(ValueError, match=f"at least 4 examples in a batch, got {n}"):
            aligned(Guidance(guide_network()), target, batch(n)[0])


def test_another_batch_for_the_guide_is_refused():
    guidance, target = Guidance(guide_network()), target_network()
    with guidance.capture(target):
        target(batch(12)[0])
    with pytest.raises(ValueError, match="hold 12 and 8 examples; both must see the same batch"):
        guidance(batch(8)[0])


def test_another_device_is_refused():
    guidance, target, (x, _) = Guidance(guide_network().to("meta")), target_network(), batch()
    with guidance.capture(target):
        target(x)
    with pytest.raises(ValueError, match="the guide lies on meta, its inputs on cpu"):
        guidance(x)


def test_unequal_lengths_are_refused_per_token():
    generator = torch.Generator().manual_seed(0)
    features = {"a": torch.randn(5, 4, 3, generator=generator)}
    guidance = Guidance(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), guide_layers=["0"], mapping={"0": "a"}, per_token=True
    )
    assert guidance(torch.randn(5, 4, 3, generator=generator), features).item() > 0
    with pytest.raises(ValueError, match="'a' of the target has 4 positions and '0' of the guide 6"):
        guidance(torch.ones(5, 6, 3), features)
    with pytest.raises(ValueError, match=r"shape \(batch, length, features\), '0' gives \(5, 3\)"):
        guidance(torch.ones(5, 3), features)


def test_a_guide_that_is_the_target_is_refused():
    target = target_network()
    guidance = Guidance(target)
    with (
        pytest.raises(ValueError, match=r"the target's blocks.0.0.weight is the guide's own"),
        guidance.capture(target),
    ):
        pass


def test_a_call_without_features_is_refused_and_features_serve_once():
    guidance, target, (x, _) = Guidance(guide_network()), target_network(), batch()
    with pytest.raises(RuntimeError, match="no captured features"):
        guidance(x)
    aligned(guidance, target, x)
    with pytest.raises(RuntimeError, match="no captured features"):
        guidance()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosine"}, "metric must be one of cka, .*got 'cosine'"),
        ({"mapping": "random"}, "mapping must be one of uniform, got 'random'"),
        ({"mapping": {}}, "mapping pairs no layers"),
        ({"reduction": "none"}, "reduction must be one of sum, mean"),
        ({"on_collision": "first"}, "on_collision must be one of sum, last"),
        ({"weight": -1.0}, "weight must be finite and >= 0, got -1"),
        ({"weight": float("nan")}, "weight must be finite"),
        ({"stop_after": -1}, "stop_after must be >= 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(DeepMLP(4, 2, depth=2, width=3), **options)
