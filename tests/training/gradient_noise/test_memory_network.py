"""MemN2N against a loop written from the equations, and the properties of its parts."""

import pytest
import torch
import torch.nn.functional as F

from etude.training.gradient_noise import GradientNoise, MemN2N, position_encoding, random_times

VOCAB, DIM, MEMORY, WORDS = 9, 4, 6, 3


def network(**options) -> MemN2N:
    torch.manual_seed(0)
    model = MemN2N(VOCAB, dim=DIM, memory=MEMORY, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # away from the linear regime of the small initial weights
    return model


def stories_and_questions(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Stories of 4, 5, 6, ... sentences, some of them with fewer words."""
    generator = torch.Generator().manual_seed(1)
    stories = torch.randint(1, VOCAB, (batch, MEMORY, WORDS), generator=generator)
    stories[:, 1, 2] = 0
    for row in range(batch):
        stories[row, 4 + row :] = 0
    return stories, torch.randint(1, VOCAB, (batch, WORDS), generator=generator)


def naive_logits(model: MemN2N, story: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
    """One story through Eq. (1) and (2), word by word."""

    def bag(table, sentence):
        total = torch.zeros(DIM)
        for j, word in enumerate(sentence.tolist(), start=1):
            for k in range(1, DIM + 1):
                weight = (1 - j / WORDS) - (k / DIM) * (1 - 2 * j / WORDS) if model.position_encoding else 1.0
                if word != 0:
                    total[k - 1] += weight * table[word, k - 1]
        return total

    sentences = [sentence for sentence in story if sentence.any()]
    adjacent = model.tying == "adjacent"
    u = bag(model.question_table, question)
    for hop in range(model.hops):
        times = (model.times[hop], model.times[hop + 1]) if adjacent else (model.times[0], model.times[1])
        m = [bag(model.input_table(hop), sentence) + times[0][i] for i, sentence in enumerate(sentences)]
        c = [bag(model.output_table(hop), sentence) + times[1][i] for i, sentence in enumerate(sentences)]
        scores = torch.stack([u.dot(memory) for memory in m])
        p = scores if model.linear else scores.softmax(0)
        o = sum(weight * output for weight, output in zip(p, c))
        u = (u if adjacent else model.between_hops(u)) + o
    logits = model.answer_table @ u
    logits[0] = 0
    return logits


@pytest.mark.parametrize("tying", ["adjacent", "rnn"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_logits_equal_a_loop_over_words_sentences_and_hops(tying, linear, encoded):
    model = network(tying=tying, position_encoding=encoded, linear_start=linear)
    stories, questions = stories_and_questions()
    logits = model(stories, questions)
    for row in range(len(stories)):
        expected = naive_logits(model, stories[row], questions[row])
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_position_encoding_equals_the_closed_form():
    for j in range(1, 6):
        for k in range(1, 8):
            expected = (1 - j / 5) - (k / 7) * (1 - 2 * j / 5)
            assert position_encoding(5, 7)[j - 1, k - 1].item() == pytest.approx(expected, abs=1e-6)


def test_adjacent_tying_shares_storage():
    model = network(hops=3)
    for hop in range(2):
        assert model.input_table(hop + 1) is model.output_table(hop)
    assert model.question_table is model.input_table(0)
    assert model.answer_table is model.output_table(2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4 * (VOCAB + MEMORY) * DIM


def test_rnn_tying_shares_the_tables_of_all_hops_and_maps_between_them():
    model = network(hops=5, tying="rnn")
    assert all(model.input_table(hop) is model.input_table(0) for hop in range(5))
    assert all(model.output_table(hop) is model.output_table(0) for hop in range(5))
    tables = {id(t) for t in (model.input_table(0), model.output_table(0), model.question_table, model.answer_table)}
    assert len(tables) == 4
    assert sum(parameter.numel() for parameter in model.parameters()) == (4 * VOCAB + 2 * MEMORY + DIM) * DIM


def test_initial_weights_have_standard_deviation_a_tenth():
    torch.manual_seed(0)
    model = MemN2N(vocab=500, dim=100, tying="rnn")
    for parameter in model.parameters():
        assert parameter.std().item() == pytest.approx(0.1, rel=0.05)


def test_permuting_two_memories_without_time_leaves_the_answers_unchanged():
    model = network()
    stories, questions = stories_and_questions()
    swapped = stories[:, [2, 1, 0, 3, 4, 5]]
    assert not torch.allclose(model(swapped, questions), model(stories, questions))
    with torch.no_grad():
        for times in model.times:
            times.zero_()
    torch.testing.assert_close(model(swapped, questions), model(stories, questions))


@pytest.mark.parametrize("linear", [False, True])
def test_empty_memories_receive_no_attention(linear):
    model = network(linear_start=linear)
    stories, questions = stories_and_questions()
    attention = model.attention(stories, questions)
    filled = stories.ne(0).any(dim=-1)
    assert attention.shape == (3, 3, MEMORY)
    assert torch.equal(attention.ne(0), filled.expand(3, -1, -1))
    if not linear:
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 3))


def test_a_story_without_a_sentence_leaves_the_question_as_it_is():
    model = network()
    stories, questions = stories_and_questions()
    logits = model(torch.zeros_like(stories), questions)
    state = torch.stack([(model.question_table[q] * position_encoding(WORDS, DIM)).sum(0) for q in questions])
    torch.testing.assert_close(logits[:, 1:], (state @ model.answer_table.T)[:, 1:])


def test_dropping_empty_memories_changes_nothing():
    model = network()
    stories, questions = stories_and_questions(batch=2)
    torch.testing.assert_close(model(stories[:, :5], questions), model(stories, questions))


def test_set_linear_takes_the_softmax_out_and_puts_it_back():
    model = network(linear_start=True)
    stories, questions = stories_and_questions()
    linear = model(stories, questions)
    model.set_linear(False)
    assert not torch.allclose(model(stories, questions), linear)
    model.set_linear(True)
    assert torch.equal(model(stories, questions), linear)


def test_the_null_word_stays_nothing_under_gradient_noise():
    model = network()
    stories, questions = stories_and_questions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GradientNoise(optimizer, eta=1.0, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(stories, questions), torch.tensor([1, 2, 3])).backward()
        optimizer.step()
    assert all(table[0].ne(0).all() for table in model.words)
    logits = model(stories, questions)
    assert torch.equal(logits[:, 0], torch.zeros(3))
    with torch.no_grad():
        for table in model.words:
            table[0] = 0
    assert torch.equal(model(stories, questions), logits)


def test_gradients_match_finite_differences():
    model = network(hops=2).double()
    stories, questions = stories_and_questions(batch=2)
    names = [name for name, _ in model.named_parameters()]

    def logits(*parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters)), (stories, questions))

    assert torch.autograd.gradcheck(logits, tuple(model.parameters()))


def test_random_times_rise_within_a_story_and_leave_only_the_allowed_gaps():
    stories = torch.ones(2000, 30, 2, dtype=torch.int64)
    stories[:, 20:] = 0
    times = random_times(stories, fraction=0.1, generator=torch.Generator().manual_seed(0))[:, :20]
    assert (times.diff(dim=1) > 0).all()
    gaps = times[:, -1] - 19
    # ceil(0.1 * 20) = 2 empty memories at most; the last slot is a memory with probability 20/21 or so.
    assert set(gaps.tolist()) == {0, 1, 2}
    # A slot before the last sentence is taken with probability 20 / (20 + empty), empty uniform on 0, 1, 2.
    first_is_latest = times[:, 0].eq(0).double().mean().item()
    assert first_is_latest == pytest.approx((1 + 20 / 21 + 20 / 22) / 3, abs=0.02)


def test_random_times_without_empty_memories_count_up():
    stories, _ = stories_and_questions()
    times = random_times(stories, fraction=0.0)
    for row, sentences in enumerate((4, 5, 6)):
        assert times[row, :sentences].tolist() == list(range(sentences))


def test_random_times_stay_within_a_full_memory():
    times = random_times(torch.ones(500, 10, 1, dtype=torch.int64), fraction=0.5)
    assert times.max() == 9
    assert (times.diff(dim=1) >= 0).all()


def test_a_seeded_generator_reproduces_the_times():
    stories, _ = stories_and_questions()
    draws = [random_times(stories, 0.5, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_a_saved_model_loads_with_its_arguments(tmp_path):
    model = network(hops=2, tying="rnn")
    model.save_pretrained(tmp_path)
    stories, questions = stories_and_questions()
    assert torch.equal(MemN2N.from_pretrained(tmp_path)(stories, questions), model(stories, questions))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="hops must be at least 1, got 0"):
        MemN2N(VOCAB, hops=0)
    with pytest.raises(ValueError, match="tying must be one of adjacent, rnn, got 'layer'"):
        MemN2N(VOCAB, tying="layer")
    stories, questions = stories_and_questions()
    with pytest.raises(ValueError, match="has 2 memories, the stories have 6 sentences"):
        MemN2N(VOCAB, memory=2)(stories, questions)
    with pytest.raises(ValueError, match=r"fraction must be >= 0, got -0\.1"):
        random_times(stories, -0.1)
