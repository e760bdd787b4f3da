"""The whole system as one estimator."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.data.faces import FaceScenes, lfw_faces
from etude.data.kinds import Examples, ImageData
from etude.vision.face_attributes import FaceAttributeClassifier

QUICK = {"epochs": 1, "identity_epochs": 1, "crops": 1, "scales": (1.0,), "C": 0.01, "random_state": 0, "crop_size": 12}


def scenes(n=16, pictures=2):
    world, generator = FaceScenes(), torch.Generator().manual_seed(0)
    return world.scenes(world.people(n, generator), pictures, generator)


@pytest.mark.parametrize("options", [{}, {"cascade": True}, {"search": False}, {"local": False, "crops": 5}])
def test_tags_in_tags_out_and_boxes_beside(options):
    faces = scenes()
    classifier = FaceAttributeClassifier(**(QUICK | options)).fit(faces.images, faces.tags[:, :3])
    assert classifier.predict(faces.images).shape == (32, 3)
    assert set(np.unique(classifier.predict(faces.images))) <= {0, 1}
    boxes = classifier.localize(faces.images)
    assert boxes.shape == (32, 4)
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert 0 <= classifier.score(faces.images, faces.tags[:, :3]) <= 1
    assert (classifier.lnet_ is None) == (options.get("search") is False)


def test_identities_pretrain_and_the_seed_decides():
    faces = scenes()
    fitted = [
        FaceAttributeClassifier(**QUICK).fit(faces.images, faces.tags[:, :2], identities=ids)
        for ids in (faces.identities, faces.identities, None)
    ]
    features = [one.transform(faces.images) for one in fitted]
    assert np.array_equal(features[0], features[1])
    assert not np.array_equal(features[0], features[2])


def test_labels_in_labels_out():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (18, 32, 32, 3), dtype=np.uint8)
    three = np.array(["a", "b", "c"] * 6)
    classifier = FaceAttributeClassifier(**QUICK).fit(colours, three)
    assert classifier.classes_.tolist() == ["a", "b", "c"]
    assert set(classifier.predict(colours)) <= {"a", "b", "c"}
    assert classifier.decision_function(colours).shape == (18, 3)
    two = FaceAttributeClassifier(**QUICK).fit(colours, three == "a")
    assert two.decision_function(colours).shape == (18,)
    assert two.predict(colours).dtype == bool


def test_a_users_images_are_fitted_by_their_train_split_and_scored_on_their_test_split():
    data = lfw_faces()
    classifier = FaceAttributeClassifier(**(QUICK | {"search": False, "crop_size": 24})).fit(data)
    assert 0 <= classifier.score(data) <= 1
    assert classifier.predict(data.test.inputs).shape == (40,)
    # grey data, colour pictures: converted as documented
    assert classifier.predict(data.test.inputs.expand(-1, 3, -1, -1)).shape == (40,)


def test_it_is_an_estimator():
    classifier = FaceAttributeClassifier(cascade=True, lr=1e-3)
    assert clone(classifier).get_params() == classifier.get_params()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: FaceAttributeClassifier().fit(f.images), "fit needs y"),
        (lambda f: FaceAttributeClassifier().fit(f.images, f.tags[1:]), "32 pictures and 31 rows of tags"),
        (lambda f: FaceAttributeClassifier().fit(f.images, f.tags + 3), "tags must be 0 and 1"),
        (lambda f: FaceAttributeClassifier().fit(f.images, np.zeros(32)), "two classes or more"),
        (lambda f: FaceAttributeClassifier(crop_size=8).fit(f.images, f.tags), "at least 12, got 8"),
        (lambda f: FaceAttributeClassifier().fit(f.images[..., :20, :20], f.tags), "at least 29 x 29 pixels"),
        (lambda f: FaceAttributeClassifier().fit(f.images * 300, f.tags), "must lie in"),
        (
            lambda f: FaceAttributeClassifier(**QUICK, search=False).fit(f.images, f.tags, identities=f.identities[1:]),
            "32 pictures and 31 identities",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(scenes())


def test_a_dataset_on_disk_is_for_the_parts():
    class Lazy(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(1, 8, 8), 0

    part = Examples(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="in memory"):
        FaceAttributeClassifier().fit(ImageData(Lazy(), part, part, ("a", "b"), "lazy"))
