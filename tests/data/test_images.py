import numpy as np
import pytest
import torch

from etude.data import images
from etude.data.catalogue import locate

FIRST_DIGITS = [3, 1, 5, 6, 4, 9, 7, 0, 2, 8, 3, 1, 5, 6, 4, 9, 7, 0, 2, 8]
TEST_INK = 186400


def rows(split):
    return {tuple(image.flatten().tolist()) for image in split.inputs}


def test_digits_are_split_1000_200_597():
    data = images.digits()
    assert (len(data.train), len(data.val), len(data.test)) == (1000, 200, 597)
    assert (data.channels, data.size, data.num_classes) == (1, (8, 8), 10)


def test_digits_lie_in_the_unit_interval():
    inputs = images.digits().train.inputs
    assert inputs.min() == 0
    assert inputs.max() == 1


def test_no_digit_is_in_two_parts():
    data = images.digits()
    train, val, test = rows(data.train), rows(data.val), rows(data.test)
    assert len(train | val | test) == len(train) + len(val) + len(test)


def test_the_digits_split_never_changes():
    data = images.digits()
    assert data.train.targets[:20].tolist() == FIRST_DIGITS
    assert int(data.test.inputs.mul(16).sum()) == TEST_INK


def test_loading_twice_gives_tensors_of_their_own():
    first = images.digits()
    first.train.inputs.zero_()
    assert images.digits().train.inputs.any()


def test_mnist5k_is_split_exactly_by_class():
    data = images.mnist5k()
    assert data.train.targets.bincount().tolist() == [350] * 10
    assert data.val.targets.bincount().tolist() == [50] * 10
    assert data.test.targets.bincount().tolist() == [100] * 10
    assert data.size == (28, 28)


def test_shapes_are_the_same_for_the_same_seed():
    assert torch.equal(images.shapes(50, seed=3).train.inputs, images.shapes(50, seed=3).train.inputs)
    assert not torch.equal(images.shapes(50, seed=3).train.inputs, images.shapes(50, seed=4).train.inputs)


def test_shapes_leave_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    images.shapes(50)
    assert np.array_equal(before, np.random.get_state()[1])


def test_shapes_can_be_told_apart_by_a_linear_model():
    from sklearn.linear_model import LogisticRegression

    data = images.shapes(1500, size=16)
    model = LogisticRegression(max_iter=300).fit(data.train.inputs.flatten(1), data.train.targets)
    assert model.score(data.test.inputs.flatten(1), data.test.targets) > 0.3  # chance is 0.2


def test_too_few_shapes_are_refused():
    with pytest.raises(ValueError, match="at least 20, got 3"):
        images.shapes(3)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The data, and the cache that they were decoded into."""
    try:
        locate("cifar10_jpeg")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield images.cifar10_jpeg(), cache / "etude" / "decoded"


def test_cifar10_is_split_10000_2000_4000(cifar10):
    data, _ = cifar10
    assert (len(data.train), len(data.val), len(data.test)) == (10_000, 2_000, 4_000)
    assert (data.channels, data.size) == (3, (32, 32))
    assert data.test.targets.bincount().tolist() == [400] * 10


def test_cifar10_is_decoded_once_and_a_torn_cache_again(cifar10):
    data, cache = cifar10
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    assert torch.equal(images.cifar10_jpeg().test.inputs, data.test.inputs)
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:1000])
    assert torch.equal(images.cifar10_jpeg().val.inputs, data.val.inputs)


def test_an_absent_cifar10_says_what_to_place_where(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"place cifar10_jpeg_subset.zip .* into .*cifar10_jpeg"):
        images.cifar10_jpeg()
