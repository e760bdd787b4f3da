"""Questions: the generator tells the truth, the reader understands the format, vectors keep what they should."""

import os
from pathlib import Path

import pytest
import torch

from etude.training.gradient_noise import Question, babi_like, build_vocab, load_babi, vectorize_babi

FILE = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary took the apple there.
5 What is Mary carrying?\tapple,milk\t4 1
1 Sandra's here.
2 Where is Sandra?\tHere\t1
"""

GO = {"walked", "hurried", "strolled", "returned"}
TAKE = {"picked", "took", "grabbed"}
DROP = {"put", "dropped", "left"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qa7_toy_train.txt").write_text(FILE)
    return tmp_path


def replay(story) -> tuple[dict[str, str], dict[str, str]]:
    """Places of actors and of objects after a story, by acting it out sentence by sentence."""
    actors: dict[str, str] = {}
    objects: dict[str, str] = {}
    holder: dict[str, str] = {}
    for actor, verb, *_, noun in story:
        if verb in GO:
            actors[actor] = noun
        elif verb in TAKE:
            assert noun not in holder
            assert noun not in objects or objects[noun] == actors[actor]
            holder[noun] = actor
        else:
            assert verb in DROP
            assert holder.pop(noun) == actor
        for thing, who in holder.items():
            objects[thing] = actors[who]
    return actors, objects


@pytest.mark.parametrize("task", ["where_is_actor", "where_is_object"])
def test_every_generated_answer_is_where_the_story_leaves_the_thing(task):
    for item in babi_like(task, 500, seed=0):
        actors, objects = replay(item.story)
        assert item.answer == {**actors, **objects}[item.question[-1]]


@pytest.mark.parametrize(("task", "facts"), [("where_is_actor", 1), ("where_is_object", 2)])
def test_supporting_sentences_name_the_thing_and_the_answer(task, facts):
    for item in babi_like(task, 500, seed=0):
        support = [item.story[index] for index in item.support]
        assert len(support) == facts
        assert any(item.question[-1] in sentence for sentence in support)
        assert any(item.answer in sentence for sentence in support)


def test_generated_questions_use_all_places_and_objects():
    items = babi_like("where_is_object", 1000, seed=0)
    assert len({item.answer for item in items}) == 6
    assert len({item.question[-1] for item in items}) == 3
    assert max(items.count(item) for item in items[:50]) == 1


def test_the_generator_is_seeded():
    assert babi_like("where_is_object", 20, seed=1) == babi_like("where_is_object", 20, seed=1)
    assert babi_like("where_is_object", 20, seed=1) != babi_like("where_is_object", 20, seed=2)
    assert babi_like("where_is_object", 7, seed=1) == babi_like("where_is_object", 20, seed=1)[:7]


def test_the_reader_follows_the_format(folder):
    first, second, third = load_babi(folder, 7, "train")
    assert first.story == (("mary", "moved", "to", "the", "bathroom"), ("john", "went", "to", "the", "hallway"))
    assert first.question == ("where", "is", "mary")
    assert (first.answer, first.support) == ("bathroom", (0,))
    # Line 3 was a question, so that line 4 is the third sentence.
    assert (second.answer, second.support) == ("apple,milk", (2, 0))
    assert len(second.story) == 3
    assert third == Question((("sandra", "s", "here"),), ("where", "is", "sandra"), "here", (0,))


def test_a_line_without_a_number_is_refused_with_its_place(folder):
    (folder / "qa8_bad_train.txt").write_text("1 Fine.\nno number\n")
    with pytest.raises(ValueError, match=r"qa8_bad_train\.txt, line 2: expected .* got 'no number'"):
        load_babi(folder, 8, "train")


def test_absent_files_say_what_to_place_where(folder):
    with pytest.raises(FileNotFoundError, match=r"qa9_\*_train\.txt.*place the bAbI tasks"):
        load_babi(folder, 9, "train")


def test_vectors_hold_the_latest_sentences_first_and_null_elsewhere(folder):
    items = load_babi(folder, 7, "train")
    vocab = build_vocab(items)
    assert sorted(vocab.values()) == list(range(1, len(vocab) + 1))
    batch = vectorize_babi(items, vocab, memory=2, sentence_len=6)
    word = {index: name for name, index in vocab.items()}

    def text(indices):
        return [word[int(index)] for index in indices if index]

    assert batch.stories.shape == (3, 2, 6)
    assert text(batch.stories[1, 0]) == ["mary", "took", "the", "apple", "there"]
    assert text(batch.stories[1, 1]) == ["john", "went", "to", "the", "hallway"]
    assert text(batch.stories[2, 0]) == ["sandra", "s", "here"]
    assert text(batch.stories[2, 1]) == []
    assert [text(question) for question in batch.questions] == [list(item.question) for item in items]
    assert [word[int(answer)] for answer in batch.answers] == ["bathroom", "apple,milk", "here"]


def test_trimming_drops_only_memories_that_are_empty_everywhere(folder):
    items = load_babi(folder, 7, "train")
    batch = vectorize_babi(items, build_vocab(items), memory=10)
    trimmed = batch.trimmed()
    assert trimmed.stories.shape[1] == 3
    assert torch.equal(trimmed.stories, batch.stories[:, :3])
    assert not batch.stories[:, 3:].any()


def test_an_unknown_word_and_a_long_sentence_are_refused(folder):
    items = load_babi(folder, 7, "train")
    vocab = build_vocab(items)
    with pytest.raises(ValueError, match="sentence_len is 3, but a sentence has 5 words"):
        vectorize_babi(items, vocab, sentence_len=3)
    del vocab["apple"]
    with pytest.raises(ValueError, match="'apple' is not in the vocabulary"):
        vectorize_babi(items, vocab)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: babi_like("where_is_cat", 1, 0),
            "task must be one of where_is_actor, where_is_object, got 'where_is_cat'",
        ),
        (lambda: load_babi(".", 1, "val"), "split must be one of train, test, got 'val'"),
        (lambda: babi_like("where_is_actor", -1, 0), "n must be >= 0, got -1"),
        (lambda: vectorize_babi([], {}, memory=0), "memory must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_public_files_of_task_1():
    folder = Path(os.environ.get("ETUDE_DATA", "")) / "babi" / "en"
    if not folder.is_dir():
        pytest.skip("the bAbI files are not here")
    train, test = load_babi(folder, 1, "train"), load_babi(folder, 1, "test")
    assert (len(train), len(test)) == (1000, 1000)
    assert len({item.answer for item in train + test}) == 6
    assert len(build_vocab(train + test)) == 19
    for item in train:
        assert item.answer in item.story[item.support[0]]
