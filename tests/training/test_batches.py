"""Streams of batches: what they give, and that they go on where they were."""

from itertools import islice

import pytest
import torch

from rub.errors import RubError
from rub.tasks.classification.context import UnlearnContext
from rub.tasks.classification.methods._steps import rounds
from rub.tasks.inpainting.context import UnlearnContext as MaeContext
from rub.tasks.text_to_image.context import Side
from rub.tasks.text_to_image.context import UnlearnContext as PromptContext
from rub.training.batches import Augmentation, cuts, refilled

CONTEXT = UnlearnContext(seed=4, num_classes=4, batch_size=4, augmentation=Augmentation(1, True))
SIDE = Side(("a",), torch.arange(5.0).reshape(5, 1, 1, 1), tuple("abcde"))


def streams(samples_of):
    return {
        "passes": lambda: CONTEXT.endless(samples_of(10), "some"),
        "even": lambda: CONTEXT.endless(samples_of(10), "some", even=True),
        "rows": lambda: PromptContext(seed=1).rows(5, 3, "some"),
        "pictures": lambda: PromptContext(seed=1, batch_size=3).pictures(SIDE, "some"),
    }


@pytest.mark.parametrize("name", ["passes", "even", "rows", "pictures"])
@pytest.mark.parametrize("done", [0, 1, 5, 11])
def test_a_stream_goes_on_where_another_stood(name, done, samples_of):
    first, second = streams(samples_of)[name](), streams(samples_of)[name]()
    for _ in range(done):
        next(first)
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        for one, other in zip(next(first), next(second), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert first.state_dict() == second.state_dict() == {"given": done + 6}


def test_what_is_skipped_is_drawn_but_not_made(samples_of):
    batches, made = CONTEXT.endless(samples_of(10), "some"), []
    make = batches.make
    batches.make = lambda drawn: made.append(len(drawn)) or make(drawn)
    batches.load_state_dict({"given": 50})
    next(batches)
    assert made == [2]  # batches of 4, 4 and 2


def test_even_batches_hold_every_image_once_a_pass(samples_of):
    samples = samples_of(10)
    even = list(islice(MaeContext(seed=0, batch_size=8).endless(samples, "some", 4, even=True), 5))
    assert [len(x) for x, _ in even] == [4] * 5
    labels = torch.cat([y for _, y in even])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist()) == sorted(samples.labels.tolist())


def test_parts_are_cut_anew():
    parts = (torch.arange(start, start + 3) for start in range(0, 12, 3))
    assert [part.tolist() for part in refilled(parts, 5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [part.tolist() for part in refilled(iter([torch.arange(7)]), 2)] == [[0, 1], [2, 3], [4, 5]]


def test_a_last_single_image_is_left_out():
    for count, sizes in {0: [], 1: [1], 6: [3, 3], 7: [3, 3], 8: [3, 3, 2]}.items():
        assert [part.stop - part.start for part in cuts(count, 3)] == sizes
        assert sum(part.stop - part.start for part in cuts(count, 3, lone=True)) == count


def test_rounds_pass_over_each_part_in_turn(samples_of):
    told = []
    context = UnlearnContext(seed=0, num_classes=4, batch_size=4, progress=lambda *said: told.append(said[:2]))
    parts = [{"forget": samples_of(5), "retain": samples_of(8)}, {"retain": samples_of(8)}]
    found = [(batch.epoch, batch.part, len(batch.y)) for batch in rounds(context, lambda: parts, {})]
    assert found == [(0, "forget", 4), (0, "retain", 4), (0, "retain", 4), (1, "retain", 4), (1, "retain", 4)]
    assert told == [(step, 5) for step in range(1, 6)]


def test_no_images_are_refused(samples_of):
    with pytest.raises(RubError, match="an empty set of images"):
        CONTEXT.endless(samples_of(0), "some")
    with pytest.raises(RubError, match="there are none of one side"):
        PromptContext(seed=0).pictures(Side(("a",), torch.empty(0, 1, 1, 1), ()), "some")
    assert list(CONTEXT.epochs(samples_of(0), 3)) == []
