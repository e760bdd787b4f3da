"""Images with reports, and the files of KnoBo's authors."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from etude.data import locate
from etude.data.knobo import (
    image_reports,
    official_annotations,
    official_answers,
    official_features,
    official_questions,
    official_split,
)


def present():
    try:
        return (locate("knobo") / "data" / "bottlenecks").is_dir()
    except FileNotFoundError:
        return False


needs_files = pytest.mark.skipif(not present(), reason="the authors' concept files are not here")


def folder(tmp_path, names, side=8):
    for k, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 10 * k + 5, np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_names_files_reports_and_labels(tmp_path, kind):
    root = folder(tmp_path, ["a.png", "sub/b.png", "c.png"])
    rows = [
        ("a.png", 'No "dots", none.\nSecond line.', "benign"),
        ("sub/b.png", "Dots.", ""),
        ("c.png", "", "malignant"),
    ]
    table = tmp_path / f"reports.{kind}"
    if kind == "jsonl":
        keys = ("file", "report", "label")
        table.write_text("\n".join(json.dumps(dict(zip(keys, row))) for row in rows))
    else:
        cut = "," if kind == "csv" else "\t"
        quoted = [cut.join('"' + value.replace('"', '""') + '"' for value in row) for row in rows]
        table.write_text("\n".join([cut.join(("file", "report", "label")), *quoted]))
    data = image_reports(root, table)
    assert (data.files, data.reports, data.labels) == tuple(tuple(column) for column in zip(*rows))
    assert data.classes == ("benign", "malignant")
    assert data.images.shape == (3, 3, 8, 8)
    assert data.images[1].unique().tolist() == [pytest.approx(15 / 255)]


def test_a_text_file_beside_each_image_and_sub_folders_for_labels(tmp_path):
    root = folder(tmp_path, ["x/1.png", "y/2.png", "3.png"])
    (root / "x" / "1.txt").write_text("No dots.\n")
    data = image_reports(root, size=4, channels=1)
    assert data.files == ("3.png", "x/1.png", "y/2.png")
    assert data.reports == ("", "No dots.", "")
    assert data.labels == ("", "x", "y")
    assert data.images.shape == (3, 1, 4, 4)


def test_annotated_images_are_apart_from_the_task(tmp_path):
    root = folder(tmp_path, [f"{k}.png" for k in range(25)])
    table = tmp_path / "r.csv"

    def written(rows):
        table.write_text("file,report,label\n" + "\n".join(",".join(row) for row in rows))
        return image_reports(root, table)

    rows = [(f"{k}.png", "dots", "") if k < 5 else (f"{k}.png", "", "ab"[k % 2]) for k in range(25)]
    parts = written(rows).parts()
    assert sorted(parts["annotated"].files) == sorted(f"{k}.png" for k in range(5))
    assert [len(parts[part]) for part in ("train", "val", "test")] == [12, 4, 4]
    both = written([(f"{k}.png", "dots", "ab"[k % 2]) for k in range(25)]).parts(seed=1)
    assert len(both["annotated"]) == 12
    everything = [name for part in both.values() for name in part.files]
    assert len(everything) == len(set(everything)) == 25
    with pytest.raises(ValueError, match="no image has a report"):
        written([(f"{k}.png", "", "a") for k in range(9)]).parts()
    with pytest.raises(ValueError, match="the task needs two labels"):
        written([(f"{k}.png", "dots", "a") for k in range(9)]).parts()


def test_what_is_wrong_with_a_table_is_said(tmp_path):
    root = folder(tmp_path, ["a.png", "b.png"])
    folder(tmp_path, ["big.png"], side=9)
    table = tmp_path / "r.csv"

    def refused(text, message, error=ValueError, path=table, **options):
        table.write_text(text)
        with pytest.raises(error, match=message):
            image_reports(root, path, **options)

    refused("file,report\nnone.png,x\n", "1 images of the table are not in .*'none.png'", FileNotFoundError)
    refused("name,report\na.png,x\n", r"must have the column 'file' and 'report' or 'label', got \['name', 'report'\]")
    refused("file,text\na.png,x\n", "'report' or 'label'")
    refused("file,report\na.png,x\na.png,y\n", "'a.png' occurs twice")
    refused("file,report\n,x\n", "row 1: no file")
    refused("file,report\n", "has no rows")
    refused("file,report\na.png,x\nbig.png,y\n", r"a.png is \(8, 8\), big.png is \(9, 9\)")
    refused("", "ends in .csv, .tsv or .jsonl, got r.xls", path=_touched(tmp_path / "r.xls"))
    refused("", "line 1: expected a JSON object", path=_touched(tmp_path / "r.jsonl", "nonsense\n"))
    refused("file,report\na.png,x\n", "channels must be 1 or 3, got 2", channels=2)
    with pytest.raises(FileNotFoundError, match="no table of reports"):
        image_reports(root, tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        image_reports(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"no picture")
    refused("file,report\na.png,x\n", "cannot be read as an image")


def _touched(path, text=""):
    path.write_text(text)
    return path


@needs_files
@pytest.mark.parametrize("modality", ["skin", "xray"])
@pytest.mark.parametrize("source", ["PubMed", "StatPearls", "Textbooks", "Wikipedia", "prompt"])
def test_official_concepts_have_an_entry_for_each_class(modality, source):
    pytest.importorskip("sklearn")
    from etude.science.knobo import Bottleneck, KnowledgePrior

    answers = official_answers(modality)
    bottleneck = Bottleneck.from_questions(official_questions(modality, source))
    assert len(bottleneck) + len(bottleneck.duplicates) == 200
    repeated = {("skin", "prompt"): 46, ("xray", "prompt"): 11, ("xray", "Textbooks"): 1}
    assert len(bottleneck.duplicates) == repeated.get((modality, source), 0)
    prior = KnowledgePrior.from_answers(answers, list(answers), bottleneck.questions)
    assert set(prior.values.unique().tolist()) <= {-1.0, 0.0, 1.0}
    for k, name in enumerate(answers):
        for m, question in enumerate(bottleneck.questions[:20]):
            assert prior.values[k, m] == {"yes": 1, "no": -1, "unknown": 0}[answers[name][question]]


@needs_files
def test_official_classes_keep_their_spelling_and_lists_read_from_their_path():
    pytest.importorskip("sklearn")
    from etude.science.knobo import Bottleneck

    assert len(official_answers("skin")) == 15
    assert "maliganant" in official_answers("skin")
    assert len(official_answers("xray")) == 19
    path = locate("knobo") / "data" / "bottlenecks" / "skin_PubMed.txt"
    assert list(Bottleneck.from_questions(path).questions) == official_questions("skin")


def test_unknown_modalities_and_sources_are_refused():
    with pytest.raises(ValueError, match="one of xray, skin, got 'mri'"):
        official_answers("mri")
    with pytest.raises(ValueError, match=r"one of PubMed, .*, got 'web'"):
        official_questions("skin", "web")


def test_splits_are_unpickled_without_running_anything(tmp_path):
    path = tmp_path / "class2images_train.p"
    table = {"benign": ["ISIC/1.JPG", "ISIC/2.JPG"], "malignant": []}
    path.write_bytes(pickle.dumps(table))
    assert official_split(path) == table

    class Bad:
        def __reduce__(self):
            return (os.getcwd, ())

    path.write_bytes(pickle.dumps({"benign": Bad()}))
    with pytest.raises(ValueError, match="it names posix"):
        official_split(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="class -> list of images, got list"):
        official_split(path)


def test_features_are_read_in_the_authors_layout(tmp_path):
    base = tmp_path / "features" / "m"
    base.mkdir(parents=True)
    torch.save({"sick": 1, "well": 0}, base / "set_label.pt")
    with pytest.raises(ValueError, match=r"holds no \*.pt"):
        official_features(tmp_path, "set", "m")
    for part in ("train", "val", "test"):
        for name, value in (("sick", 2.0), ("well", 1.0)):
            place = base / "set" / part / name
            place.mkdir(parents=True)
            # As extract_features.py writes them, an array a file; dictionaries are its older form.
            torch.save(np.full((3, 4), value, np.float32), place / "1.pt")
            torch.save({"a.jpg": torch.full((4,), value)}, place / "2.pt")
    read = official_features(tmp_path, "set", "m")
    assert read.classes == ("well", "sick")
    features, labels = read.splits["val"]
    assert features.shape == (8, 4)
    assert torch.equal(features[:, 0] - 1, labels.float())
    torch.save(np.ones((3, 5), np.float32), base / "set" / "val" / "sick" / "3.pt")
    with pytest.raises(ValueError, match=r"differ in width: \[4, 5\]"):
        official_features(tmp_path, "set", "m")
    torch.save(Image.new("L", (1, 1)), base / "set" / "val" / "sick" / "3.pt")
    with pytest.raises(ValueError, match="more than tensors, arrays and plain values"):
        official_features(tmp_path, "set", "m")
    with pytest.raises(FileNotFoundError, match=r"features.zip"):
        official_features(tmp_path, "other", "m")


def test_annotations_join_reports_to_images(tmp_path):
    base = tmp_path / "datasets" / "MIMIC-CXR"
    base.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"MIMIC-CXR.zip"):
        official_annotations(tmp_path, "xray", ["a?"])
    torch.save({name: torch.ones(3) for name in ("1", "2", "3")}, base / "MIMIC-CXR_whyxrayclip.pt")
    reports = {"r": {"images": [["1", "PA"], ["3", "LATERAL"]]}, "s": {"images": [["2", "AP"], ["9", "AP"]]}}
    (base / "MIMIC-CXR_metadata.json").write_text(json.dumps(reports))
    answers = {"a?": {"positive": ["r"], "negative": ["s"]}, "z?": {"positive": [], "negative": []}}
    (base / "MIMIC-CXR_concept_annotations.json").write_text(json.dumps(answers))
    read = official_annotations(tmp_path, "xray", ["b?", "a?"])
    assert read.questions == ("a?",)
    assert read.answers.tolist() == [[1], [-1], [0]]
    assert read.features.shape == (3, 3)
    with pytest.raises(ValueError, match="annotates none of the 1 questions"):
        official_annotations(tmp_path, "xray", ["b?"])


def test_a_folder_with_reports_goes_through_in_ten_lines(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("bm25s")
    from etude.science.knobo import CLASSES, KnoBo, LesionScenes, textbook

    scenes = LesionScenes(16).draw(200, 0.5, torch.Generator().manual_seed(0), reports=True)
    rows = []
    for k, (image, report, label) in enumerate(zip(scenes.images, scenes.reports, scenes.labels.tolist())):
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / f"{k}.png")
        rows.append(
            {"file": f"{k}.png", "report": report} if k < 160 else {"file": f"{k}.png", "label": CLASSES[label]}
        )
    (tmp_path / "reports.jsonl").write_text("\n".join(map(json.dumps, rows)))

    data = image_reports(tmp_path, tmp_path / "reports.jsonl")
    told, train, val, test = (data.parts()[part] for part in ("annotated", "train", "val", "test"))
    model = KnoBo(textbook(), modality="skin lesion photograph", epochs=2, pretrain_epochs=1, min_val=2)
    model.fit(train.images, train.labels, annotated=(told.images, told.reports), validation=(val.images, val.labels))
    assert model.classes_.tolist() == list(CLASSES)
    assert set(model.predict(test.images)) <= set(CLASSES)
    assert model.explain(test.images[:1], top=3)[0].reasons[0].document.startswith("t")
