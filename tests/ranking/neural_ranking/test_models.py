"""The nine models: parameter counts, padding, symmetries, equal forms, and that each can learn."""

import pytest
import torch
import torch.nn.functional as F

from etude.ranking.neural_ranking import (
    ARCI,
    ARCII,
    CDSSM,
    DRMM,
    DSSM,
    KNRM,
    MODELS,
    ConvKNRM,
    Duet,
    MatchPyramid,
    gaussian_kernels,
    hinge_pair_loss,
    match_matrix,
    taxonomy,
    trigram_table,
)

WORDS, DIM = 30, 8
LETTERS = ["", "", *(f"w{chr(97 + n % 26)}{chr(97 + n // 3)}x" for n in range(WORDS - 2))]


def make(name, seed=0, **options):
    torch.manual_seed(seed)
    if name in ("dssm", "cdssm"):
        table = trigram_table(LETTERS, size=200)
        small = {"hidden": (16, 16, 8)} if name == "dssm" else {"channels": 16, "outputs": 8}
        return MODELS[name](WORDS, num_trigrams=200, most_trigrams=table.shape[1], **small, **options).with_trigrams(
            table
        )
    small = {
        "arci": {"channels": (6, 6), "hidden": 8}, "arcii": {"maps": 6, "channels": (4, 4), "hidden": 8},
        "matchpyramid": {"channels": 4, "hidden": 8}, "convknrm": {"channels": 6},
        "duet": {"query_length": 8, "doc_length": 20, "units": 6, "window": 5},
    }  # fmt: skip
    return MODELS[name](WORDS, dim=DIM, **small.get(name, {}), **options)


def trained(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_parameter_counts_are_those_of_the_papers():
    assert trained(DSSM(2)) == 9_129_128
    assert trained(CDSSM(2)) == 27_038_828
    assert trained(DRMM(2)) == 162
    assert trained(KNRM(7, dim=5, trainable=False)) == 12
    assert trained(KNRM(7, dim=5)) == 12 + 35
    assert trained(ConvKNRM(7, dim=300)) == 230_784 + 100 + 7 * 300
    assert trained(MatchPyramid(7)) == 160 + 480 * 128 + 128 + 129


@pytest.mark.parametrize(("d", "c1", "c2", "h"), [(100, 64, 64, 128), (7, 3, 5, 4)])
def test_parameter_counts_of_the_convolutional_models_follow_their_docstrings(d, c1, c2, h):
    tower = 3 * d * c1 + c1 + 3 * c1 * c2 + c2
    head = 2 * c2 * h + h + h + 1
    assert trained(ARCI(3, dim=d, channels=(c1, c2), hidden=h)) == tower + head
    assert trained(ARCI(3, dim=d, channels=(c1, c2), hidden=h, shared=False)) == 2 * tower + head
    convolutions = 6 * d * c1 + c1 + 9 * c1 * c1 + c1 + 9 * c1 * c2 + c2
    model = ARCII(3, dim=d, maps=c1, channels=(c1, c2), grid=(2, 3), hidden=h)
    assert trained(model) == convolutions + 6 * c2 * h + h + h + 1
    lq, ld, p, f = 9, 31, 6, c1
    local = ld * f + f + lq * f * f + f + f * f + f + f + 1
    distributed = 2 * (3 * d * f + f) + 2 * (f * f + f) + (ld - p - 1) * f * f + f + f * f + f + f + 1
    model = Duet(3, dim=d, trainable=False, query_length=lq, doc_length=ld, units=f, window=p)
    assert trained(model) == local + distributed


@pytest.mark.parametrize("name", MODELS)
def test_longer_padding_changes_no_score(name, make_pairs):
    model = make(name).double().eval()
    q, d, q_mask, d_mask, idf = make_pairs()
    idf = idf.double()
    score = model(q, d, q_mask, d_mask, idf)
    wider = [F.pad(x, (0, 5)) for x in (q, q_mask, idf)], [F.pad(x, (0, 9)) for x in (d, d_mask)]
    longer = model(wider[0][0], wider[1][0], wider[0][1], wider[1][1], wider[0][2])
    torch.testing.assert_close(longer, score, rtol=0, atol=1e-6)
    # What stands at padding does not matter, either.
    rubbish = model(q.masked_fill(~q_mask, 9), d.masked_fill(~d_mask, 9), q_mask, d_mask, idf)
    torch.testing.assert_close(rubbish, score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_query_has_a_finite_score_and_gradient(name, make_pairs):
    model = make(name)
    q, d, _, d_mask, idf = make_pairs()
    score = model(q, d, torch.zeros_like(q, dtype=torch.bool), d_mask, idf)
    score.sum().backward()
    assert torch.isfinite(score).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def shuffled(x, order):
    return x.gather(1, order)


@pytest.mark.parametrize(("name", "indifferent"), [("knrm", True), ("drmm", True), ("convknrm", False)])
@pytest.mark.parametrize("which", ["query", "doc"])
def test_kernels_and_histograms_do_not_look_at_word_order(name, indifferent, which, make_pairs):
    model = make(name).double()
    q, d, q_mask, d_mask, idf = make_pairs()
    idf = idf.double()
    before = model(q, d, q_mask, d_mask, idf)
    if which == "query":
        order = torch.rand(q.shape, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
        after = model(shuffled(q, order), d, shuffled(q_mask, order), d_mask, shuffled(idf, order))
    else:
        order = torch.rand(d.shape, generator=torch.Generator().manual_seed(6)).argsort(dim=1)
        after = model(q, shuffled(d, order), q_mask, shuffled(d_mask, order), idf)
    assert torch.allclose(before, after, atol=1e-10) == indifferent


@pytest.mark.parametrize("name", ["dssm", "cdssm"])
def test_towers_do_not_mind_which_text_is_the_query(name, make_pairs):
    model = make(name).double()
    q, d, q_mask, d_mask, idf = make_pairs()
    torch.testing.assert_close(model(q, d, q_mask, d_mask, idf), model(d, q, d_mask, q_mask))


def test_dssm_on_trigrams_equals_a_dense_layer_on_their_counts(make_pairs):
    model = make("dssm").double()
    q, _, q_mask, _, _ = make_pairs()
    counts = torch.zeros(len(q), 200, dtype=torch.float64)
    for b in range(len(q)):
        for word in q[b][q_mask[b]].tolist():
            for part in model.trigrams.table[word].tolist():
                if part < 200:
                    counts[b, part] += 1
    hidden = torch.tanh(counts @ model.trigrams.weight + model.bias)
    torch.testing.assert_close(model.represent(q, q_mask), torch.tanh(model.layers(hidden)))


def test_cdssm_on_trigrams_equals_a_convolution_over_their_counts(make_pairs):
    model = make("cdssm").double()
    q, _, q_mask, _, _ = make_pairs()
    for b in range(len(q)):
        words = q[b][q_mask[b]].tolist()
        counts = torch.zeros(1, 200, len(words), dtype=torch.float64)
        for place, word in enumerate(words):
            for part in model.trigrams.table[word].tolist():
                if part < 200:
                    counts[0, part, place] += 1
        weight = model.trigrams.weight.view(200, 3, -1).permute(2, 0, 1)
        strongest = torch.tanh(F.conv1d(counts, weight, model.bias, padding=1)).amax(dim=2)
        torch.testing.assert_close(model.represent(q, q_mask)[b : b + 1], torch.tanh(model.layers(strongest)))


def test_the_sum_of_two_convolutions_equals_one_on_the_windows_put_together():
    model = make("arcii").double()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, DIM, generator=generator, dtype=torch.float64)
    doc = torch.randn(2, 5, DIM, generator=generator, dtype=torch.float64)
    weight = torch.cat([model.query_windows.weight, model.doc_windows.weight], dim=1).flatten(1)
    q, d = F.pad(query, (0, 0, 1, 1)), F.pad(doc, (0, 0, 1, 1))
    pairs = model.pairs(query, doc)
    for i in range(4):
        for j in range(5):
            window = torch.cat([q[:, i : i + 3].transpose(1, 2), d[:, j : j + 3].transpose(1, 2)], dim=1).flatten(1)
            expected = torch.relu(window @ weight.T + model.query_windows.bias)
            torch.testing.assert_close(pairs[:, :, i, j], expected)


def test_conv_knrm_of_width_one_with_an_identity_convolution_is_knrm(make_pairs):
    wide = ConvKNRM(WORDS, dim=DIM, widths=(1,), channels=DIM, squash=True).double()
    plain = KNRM(WORDS, dim=DIM).double()
    vectors = torch.rand(WORDS, DIM, generator=torch.Generator().manual_seed(0)).double()  # relu changes nothing
    for model in (wide, plain):
        model.with_embeddings(vectors)
        model.layers.load_state_dict(plain.layers.state_dict())
    with torch.no_grad():
        wide.convolutions[0].weight.copy_(torch.eye(DIM)[:, :, None])
        wide.convolutions[0].bias.zero_()
    torch.testing.assert_close(wide(*make_pairs()[:4]), plain(*make_pairs()[:4]), rtol=1e-9, atol=1e-9)


def test_knrm_scores_the_kernels_of_its_match_matrix(make_pairs):
    model = make("knrm").double()
    q, d, q_mask, d_mask, _ = make_pairs()
    matches = match_matrix(model.embed(q, q_mask), model.embed(d, d_mask), q_mask, d_mask)
    phi = gaussian_kernels(matches, model.mu, model.sigma, q_mask, d_mask)
    torch.testing.assert_close(model(q, d, q_mask, d_mask), torch.tanh(model.layers(phi)).squeeze(1))


def test_gradients_reach_the_vectors_of_knrm_and_match_finite_differences(make_pairs):
    model = make("knrm").double()
    q, d, q_mask, d_mask, _ = make_pairs(batch=2, query=3, doc=4)
    model.sigma[0] = 0.1  # so narrow a kernel as the first is flat to a finite step

    def score(weight):
        return torch.func.functional_call(model, {"embedding.weight": weight}, (q, d, q_mask, d_mask))

    weight = model.embedding.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(score, (weight,))


@pytest.mark.parametrize("gate", ["idf", "vector"])
def test_the_gate_of_drmm_sums_to_one_over_real_words(gate, make_pairs):
    model = make("drmm", gate=gate)
    torch.nn.init.normal_(model.gate_weight)
    q, d, q_mask, d_mask, idf = make_pairs()
    _, weighed, mask = model.features(q, d, q_mask, d_mask, idf)
    gates = model.gates(weighed, mask)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(len(q)))
    assert (gates[~q_mask] == 0).all()


def test_drmm_without_idf_says_what_it_needs(make_pairs):
    with pytest.raises(ValueError, match="pass idf, or use gate='vector'"):
        make("drmm")(*make_pairs()[:4])
    assert make("drmm", gate="vector")(*make_pairs()[:4]).shape == (4,)


@pytest.mark.parametrize("name", ["drmm", "knrm"])
def test_the_head_on_kept_features_is_the_model(name, make_pairs):
    model = make(name, **({} if name == "drmm" else {"trainable": False}))
    assert model.cacheable
    pairs = make_pairs()
    torch.testing.assert_close(model.head(*model.features(*pairs)), model(*pairs))
    assert not make("knrm").cacheable


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_on_a_fixed_batch_falls_by_half_within_200_steps(name, make_pairs):
    options = {} if name in ("dssm", "cdssm", "drmm") else {"trainable": True}
    if name == "duet":
        options |= {"dropout": 0.0}
    model = make(name, **options)
    if "embedding" in dict(model.named_modules()):
        model.with_embeddings(F.normalize(torch.randn(WORDS, DIM), dim=1))
    pairs = make_pairs(batch=64, seed=1)
    labels = torch.tensor([1.0, 0.0]).expand(32, 2)
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=0.1 if name in ("knrm", "drmm") else 1e-2
    )
    first = loss = hinge_pair_loss(model(*pairs).view(32, 2), labels)
    for _ in range(200):
        if loss < first / 2:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = hinge_pair_loss(model(*pairs).view(32, 2), labels)
    assert loss < first / 2


def test_the_taxonomy_has_a_row_for_every_model_and_no_empty_cell():
    table = taxonomy()
    assert set(table) == set(MODELS)
    assert all(row.keys() == {"focus", "symmetry", "granularity"} and all(row.values()) for row in table.values())
    assert {name for name, row in table.items() if row["symmetry"] == "asymmetric"} == {
        "drmm",
        "knrm",
        "convknrm",
        "duet",
    }
    assert {name for name, row in table.items() if row["focus"] == "representation"} == {"dssm", "cdssm", "arci"}


def test_models_are_saved_and_loaded_with_their_settings(tmp_path, make_pairs):
    for name in ("drmm", "convknrm", "dssm"):
        model = make(name).eval()
        model.save_pretrained(tmp_path / name)
        again = MODELS[name].from_pretrained(tmp_path / name).eval()
        torch.testing.assert_close(again(*make_pairs()), model(*make_pairs()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KNRM(1), "num_words must be at least 2"),
        (lambda: KNRM(5, dim=3).with_embeddings(torch.zeros(5, 4)), r"shape \(5, 3\), got \(5, 4\)"),
        (lambda: DSSM(5, num_trigrams=9).with_trigrams(torch.zeros(5, 3, dtype=torch.int64)), r"shape \(5, 24\), got"),
        (lambda: Duet(5, doc_length=50, window=100), "doc_length at least window"),
        (lambda: DSSM(5).with_embeddings(torch.zeros(5, 4)), "word vectors of shape None"),
        (lambda: DSSM(5, inputs="embeddings").with_trigrams(torch.zeros(5, 24, dtype=torch.int64)), "with_embeddings"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
