from __future__ import annotations

import pytest
import torch

from edje_qdrant.errors import ConfigError
from edje_qdrant.training.negatives import forbidden_pairs, mine_negatives


def test_equal_pictures_and_equal_captions_are_forbidden():
    forbidden = forbidden_pairs(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 9, 7]))
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True  # the same image
    expected[0, 3] = expected[3, 0] = True  # the same caption
    assert torch.equal(forbidden, expected)


def test_the_most_similar_allowed_pair_is_chosen():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.9, 0.6], [0.2, 0.3, 0.9]])
    own = torch.eye(3, dtype=torch.bool)
    images, captions = mine_negatives(similarity, own), mine_negatives(similarity.T, own)
    assert images.ravel().tolist() == [1, 0, 1]
    assert captions.ravel().tolist() == [1, 0, 1]


def test_forbidden_pairs_are_passed_over_and_nothing_left_is_minus_one():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.9, 0.6], [0.2, 0.3, 0.9]])
    forbidden = torch.eye(3, dtype=torch.bool)
    forbidden[0, 1] = True
    forbidden[2] = True
    images = mine_negatives(similarity, forbidden)
    captions = mine_negatives(similarity.T, forbidden.T)
    assert images.ravel().tolist() == [2, 0, -1]
    # Image 0 may only take caption 1, image 1 none, image 2 caption 1 before caption 0.
    assert captions.ravel().tolist() == [1, -1, 1]


def test_several_negatives_come_most_similar_first():
    similarity = torch.tensor([[0.9, 0.1, 0.8, 0.5], [0.1, 0.2, 0.3, 0.4]])
    forbidden = torch.tensor([[True, False, False, False], [False, True, True, True]])
    assert mine_negatives(similarity, forbidden, count=2).tolist() == [[2, 3], [0, -1]]


def test_a_part_of_the_batch_is_compared_with_all_of_it():
    images, captions = torch.tensor([1, 2, 3, 1]), torch.tensor([5, 6, 7, 8])
    forbidden = forbidden_pairs(images[2:], captions[2:], images, captions)
    assert torch.equal(forbidden, forbidden_pairs(images, captions)[2:])


@pytest.mark.parametrize("count", [0, 3])
def test_too_many_or_too_few_negatives_are_refused(count):
    with pytest.raises(ConfigError, match="num_negatives must be 1 to 2"):
        mine_negatives(torch.zeros(3, 3), torch.eye(3, dtype=torch.bool), count=count)
