import pytest
import torch

from etude.nn import mixers
from etude.nn.mixers import Mixer, build_mixer, mixer_names, register_mixer
from etude.testing import check_mixer


class RunningMean(Mixer):
    recurrent = True

    def __init__(self, dim, layer=0, scale=1.0):
        super().__init__()
        self.dim, self.layer, self.scale = dim, layer, scale

    def forward(self, x, *, mask=None):
        return self.scale * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def state_size(self, length):
        return self.dim + 1

    def flops(self, length):
        return 2 * length * self.dim


class Bounded(RunningMean):
    def __init__(self, dim, max_len):
        super().__init__(dim)
        self.length_bound = max_len


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(mixers, "_REGISTRY", {})
    register_mixer("mean")(RunningMean)
    register_mixer("bounded")(Bounded)


def test_mixers_are_built_by_name_with_what_they_take(registry):
    assert mixer_names() == ["bounded", "mean"]
    mean = build_mixer("mean", 4, max_len=8, layer=3, scale=2.0)
    assert (mean.dim, mean.layer, mean.scale) == (4, 3, 2.0)
    assert build_mixer("bounded", 4, max_len=8).length_bound == 8
    with pytest.raises(ValueError, match="known are bounded, mean"):
        build_mixer("average", 4, max_len=8)
    with pytest.raises(TypeError, match="takes no width; it takes layer, scale"):
        build_mixer("mean", 4, max_len=8, width=3)


def test_a_name_is_taken_once(registry):
    register_mixer("mean")(RunningMean)
    with pytest.raises(ValueError, match="already"):
        register_mixer("mean")(Bounded)


def test_what_has_no_step_form_says_so(registry):
    mean, bounded = build_mixer("mean", 4, max_len=8), build_mixer("bounded", 4, max_len=8)
    assert not mean.has_step
    with pytest.raises(TypeError, match="RunningMean has no step form"):
        mean.init_state(2)
    with pytest.raises(TypeError, match="no step form"):
        mean.step(torch.randn(2, 4), None)
    mean.check_length(10**6)
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        bounded.check_length(9)


def test_a_mixer_must_say_what_it_does():
    with pytest.raises(TypeError, match="abstract"):
        Mixer()


class Leaky(RunningMean):
    """Linear recurrence h <- d h + W x, with a step form."""

    def __init__(self, dim, wrong=""):
        super().__init__(dim)
        self.recurrent_weight = torch.nn.Parameter(torch.full((dim,), 0.5))
        self.wrong = wrong

    def forward(self, x, *, mask=None):
        self.check_length(x.shape[1])
        if mask is not None and self.wrong != "mask":
            x = x * mask[..., None]
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.recurrent_weight * h + x[:, t]
            states.append(h)
        y = torch.stack(states, dim=1)
        return {
            "batch": y + x.mean(0),
            "causal": y + x.mean(1, keepdim=True),
            "mask": y + y * bool(mask is not None),
        }.get(self.wrong, y)

    def init_state(self, batch):
        return self.recurrent_weight.new_zeros(batch, self.dim)

    def step(self, x, state):
        h = (1 if self.wrong == "step" else self.recurrent_weight) * state + x
        if self.wrong == "state":
            state.add_(1)
        return h, h

    def state_size(self, length):
        return self.dim * (length if self.wrong == "size" else 1)


def test_the_suite_accepts_what_keeps_its_promises():
    check_mixer(Leaky(5), 5)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("batch", "change one another"),
        ("causal", "not causal"),
        ("mask", "hides nothing"),
        ("step", "differs from forward"),
        ("state", "changed its state"),
        ("size", "state_size says"),
    ],
)
def test_the_suite_refuses_what_breaks_a_promise(wrong, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_mixer(Leaky(5, wrong), 5)
    bounded = Leaky(5)
    bounded.length_bound = 20
    check_mixer(bounded, 5)
    bounded.check_length = lambda length: None
    with pytest.raises(AssertionError, match="longer than its length_bound"):
        check_mixer(bounded, 5)
