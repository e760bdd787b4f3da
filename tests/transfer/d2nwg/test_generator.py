import pytest
import torch
from torch import nn

from etude.transfer.d2nwg import (
    D2NWG,
    DatasetEncoder,
    HeadGenerator,
    MLPDenoiser,
    ModelZoo,
    WeightCodec,
    WeightVAE,
    plot_starts,
    plot_weights,
)

ENCODER = {"dim": 16, "depth": 1, "num_inducing": None, "depth_after": 0, "class_dim": 16, "num_classes": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def system(module, *, chunk_size=None, latent=8, cond=8, keys=4):
    """A zoo of one network for each of a few data sets, and the parts of a small system."""
    torch.manual_seed(0)
    codec = WeightCodec(module, chunk_size=chunk_size)
    zoo = ModelZoo(codec)
    zoo.add(torch.randn(keys, codec.num_params), torch.arange(keys))
    vae = WeightVAE(codec.chunk_size, (latent,), hidden=64, l1_weight=0.0, mse_weight=1.0)
    model = D2NWG(codec, vae, DatasetEncoder(3, cond, **ENCODER), MLPDenoiser(latent, cond, hidden=64))
    centres = 2 * torch.randn(keys, 2, 1, 3)

    def supports(wanted, g):
        return centres[wanted] + 0.1 * torch.randn((len(wanted), 2, 4, 3), generator=g)

    return zoo, model, supports


@pytest.fixture(scope="module", params=[None, 5], ids=["whole", "chunks"])
def overfitted(request):
    zoo, model, supports = system(nn.Linear(3, 2), chunk_size=request.param)
    model.fit_vae(zoo, steps=300, lr=3e-3, generator=generator(), betas=(0.9, 0.999))
    model.fit_diffusion(
        zoo, supports, steps=600, batch_size=16, noise_draws=16, lr=3e-3, ema_decay=None, generator=generator(1)
    )
    return zoo, model, supports


def test_an_overfitted_system_gives_each_data_set_its_own_network(overfitted):
    zoo, model, supports = overfitted
    support = supports(torch.arange(4), generator(5))
    drawn = model.sample_vectors(support, n=8, generator=generator(6)).mean(dim=1)
    likeness = nn.functional.cosine_similarity(drawn[:, None], zoo.vectors[None], dim=-1)
    assert likeness.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert bool((likeness.diagonal() > 0.95).all())
    assert (model.reconstruct(zoo.vectors) - zoo.vectors).square().mean() < 0.02


def test_latents_have_unit_deviation_after_scaling(overfitted):
    zoo, model, _ = overfitted
    assert float((model.latents(zoo) / model.latent_scale).std(correction=0)) == pytest.approx(1.0, rel=1e-4)
    assert float(model.scale) == pytest.approx(zoo.scale)


def test_networks_are_drawn_chosen_and_repeat(overfitted):
    zoo, model, supports = overfitted
    support = supports(torch.tensor([2]), generator(5))[0]
    head = nn.Linear(3, 2)
    before = zoo.codec.flatten(head)
    nets = model.generate(head, support, n=3, generator=generator())
    assert len(nets) == 3
    assert torch.equal(zoo.codec.flatten(head), before)
    vectors = torch.stack([zoo.codec.flatten(net) for net in nets])
    (mean,) = model.generate(head, support, n=3, select="mean", generator=generator())
    torch.testing.assert_close(zoo.codec.flatten(mean), vectors.mean(dim=0))
    (best,) = model.generate(head, support, n=3, select="support", generator=generator())
    targets = torch.arange(2).repeat_interleave(4)
    losses = [nn.functional.cross_entropy(net(support.flatten(0, 1)), targets).item() for net in nets]
    assert torch.equal(zoo.codec.flatten(best), vectors[losses.index(min(losses))])
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 1:] = False
    (few,) = model.generate(head, support, mask, generator=generator())
    moved = support.clone()
    moved[0, 1:] = 9.0
    (same,) = model.generate(head, moved, mask, generator=generator())
    torch.testing.assert_close(zoo.codec.flatten(few), zoo.codec.flatten(same))


def test_zero_budgets_and_stages_out_of_order_are_refused(overfitted):
    _, model, supports = overfitted
    support = supports(torch.tensor([0]), generator())[0]
    with pytest.raises(ValueError, match="n must be at least 1 network, got 0"):
        model.generate(nn.Linear(3, 2), support, n=0, generator=generator())
    with pytest.raises(ValueError, match="got 0"):
        model.generate(nn.Linear(3, 2), support, steps=0, generator=generator())
    with pytest.raises(ValueError, match="select must be"):
        model.generate(nn.Linear(3, 2), support, select="test", generator=generator())
    with pytest.raises(ValueError, match="NaN"):
        model.generate(nn.Linear(3, 2), support * float("nan"), generator=generator())
    with pytest.raises(ValueError, match="positions for 2 classes"):
        model.sample_vectors(torch.zeros(1, 3, 2, 3), generator=generator())
    fresh_zoo, fresh, draw = system(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="fit_diffusion comes first"):
        fresh.generate(nn.Linear(3, 2), support, generator=generator())
    with pytest.raises(RuntimeError, match="fit_vae comes first"):
        fresh.fit_diffusion(fresh_zoo, draw, steps=1, generator=generator())
    with pytest.raises(ValueError, match="steps and batch_size must be positive"):
        fresh.fit_vae(fresh_zoo, steps=0, generator=generator())
    with pytest.raises(ValueError, match="the zoo is empty"):
        fresh.fit_vae(ModelZoo(fresh.codec), steps=1, generator=generator())
    with pytest.raises(ValueError, match="the codec's 8 numbers, it takes 9"):
        D2NWG(fresh.codec, WeightVAE(9, (4,)), fresh.dataset_encoder, fresh.denoiser)


def test_a_zoo_of_one_data_set_is_warned_about():
    zoo, model, supports = system(nn.Linear(3, 2))
    zoo.keys.zero_()
    model.fit_vae(zoo, steps=1, generator=generator())
    with pytest.warns(UserWarning, match="one data set"):
        model.fit_diffusion(zoo, supports, steps=1, generator=generator())


def test_alignment_trains_the_encoder_alone_and_needs_equal_sizes():
    zoo, model, supports = system(nn.Linear(3, 2))
    model.fit_vae(zoo, steps=1, generator=generator())
    frozen = [weight.clone() for weight in (*model.vae.parameters(), *model.denoiser.parameters())]
    before = [weight.clone() for weight in model.dataset_encoder.parameters()]
    losses = model.fit_alignment(zoo, supports, steps=3, generator=generator())
    assert len(losses) == 3
    assert all(torch.equal(a, b) for a, b in zip(frozen, (*model.vae.parameters(), *model.denoiser.parameters())))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.dataset_encoder.parameters()))
    after = [weight.clone() for weight in model.dataset_encoder.parameters()]
    model.fit_diffusion(zoo, supports, steps=2, train_encoder=False, ema_decay=0.5, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(after, model.dataset_encoder.parameters()))
    other_zoo, other, draw = system(nn.Linear(3, 2), cond=6)
    other.fit_vae(other_zoo, steps=1, generator=generator())
    with pytest.raises(ValueError, match="one size, got 8 and 6"):
        other.fit_alignment(other_zoo, draw, steps=1, generator=generator())


def rows(classes=6, each=8, seed=0):
    g = generator(seed)
    centres = 2 * torch.randn(classes, 10, generator=g)
    labels = torch.arange(classes).repeat_interleave(each)
    return centres[labels] + 0.3 * torch.randn(len(labels), 10, generator=g), labels


TINY = {"dim": 4, "zoo_size": 40, "zoo_steps": 10, "vae_steps": 5, "steps": 5, "shots": 3, "sample_steps": 4}


def test_the_estimator_goes_the_whole_way_by_class_and_by_column():
    x, labels = rows()
    made = HeadGenerator(**TINY).fit(x, labels, only=[0, 1, 2, 3])
    assert {index for task in made.tasks.tolist() for index in task} == {0, 1, 2, 3}
    assert not made.rows[labels > 3].any()  # nothing of the other classes was looked at
    few = torch.isin(labels, torch.tensor([4, 5]))
    classifier = made.adapt(x[few][::3], labels[few][::3], n=2)
    assert classifier.classes == [4, 5]
    assert 0 <= classifier.score(x[few], labels[few]) <= 1
    again = HeadGenerator(**TINY).fit(x, labels, only=[0, 1, 2, 3]).adapt(x[few][::3], labels[few][::3], n=2)
    assert torch.equal(again.head.weight, classifier.head.weight)
    by_column = HeadGenerator(**TINY).fit(x, labels, column=[str(int(label) // 3) for label in labels])
    assert by_column.sampler.classes[3] == ("1", 3)
    assert by_column.losses.keys() == {"vae", "diffusion"}
    head = by_column.zoo.codec.unflatten(by_column.zoo.vectors)
    assert head["weight"].mean(dim=1).abs().max() < 1e-6  # no gauge


def test_bad_rows_of_a_user_are_refused():
    x, labels = rows()
    with pytest.raises(ValueError, match=r"the task '1' has one class"):
        HeadGenerator(**TINY).fit(x, labels, column=["1" if label == 5 else "0" for label in labels])
    with pytest.raises(ValueError, match="NaN"):
        HeadGenerator(**TINY).fit(x * float("nan"), labels)
    with pytest.raises(ValueError, match="one row"):
        HeadGenerator(**TINY).fit(x[7:], labels[7:])
    with pytest.raises(RuntimeError, match="fit comes first"):
        HeadGenerator(**TINY).adapt(x, labels)
    with pytest.raises(ValueError, match="arch must be"):
        HeadGenerator(arch="huge")
    with pytest.raises(ValueError, match="zoo_size must be positive"):
        HeadGenerator(zoo_size=0)
    made = HeadGenerator(**TINY).fit(x, labels)
    with pytest.raises(ValueError, match="the task has one class"):
        made.adapt(x[:8], labels[:8])
    with pytest.raises(ValueError, match="the task has 3 classes"):
        made.adapt(x[:24], labels[:24])
    with pytest.raises(ValueError, match="at least 1 network, got 0"):
        made.adapt(x[:16], labels[:16], n=0)
    classifier = made.adapt(x[:16], labels[:16])
    with pytest.raises(ValueError, match=r"labels \[5\] are none of the head's classes \[0, 1\]"):
        classifier.score(x[40:], labels[40:])


def test_pictures_are_drawn_and_their_input_is_checked():
    zoo = torch.randn(50, 6, generator=generator())
    figure = plot_weights(zoo, zoo[:5] + 0.1, zoo[:5])
    assert len(figure.axes[0].collections) == 3
    with pytest.raises(ValueError, match="pairs"):
        plot_weights(zoo[:2], zoo[:5], zoo[:5])
    assert len(plot_starts([0, 1], {"generated": [0.5, 0.6]}).axes[0].lines) == 1
    with pytest.raises(ValueError, match="2 points, got 1"):
        plot_starts([0, 1], {"generated": [0.5]})
    with pytest.raises(ValueError, match="no curves"):
        plot_starts([0, 1], {})
