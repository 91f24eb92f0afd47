import numpy as np

from reward.distribution import describe_scores
from reward.preferences import Comparison

RANKED = Comparison("", ("a", "b", "c"), ((2, 0), (1,)), "")


def test_scores_are_counted_by_whether_people_ranked_the_response_first():
    found = describe_scores([RANKED, RANKED], np.array([3.0, 0.0, 2.0, 4.0, 1.0, 4.0]), bins=4)

    assert found.edges == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.preferred == [0, 0, 1, 3]
    assert found.others == [1, 1, 0, 0]
    assert (found.mean, found.minimum, found.maximum) == (14 / 6, 0.0, 4.0)
    assert found.std == np.std([3, 0, 2, 4, 1, 4])


def test_equal_scores_have_a_place_too():
    found = describe_scores([RANKED], np.full(3, 0.7), bins=4)

    assert (sum(found.preferred), sum(found.others)) == (2, 1)
    assert found.edges[0] < 0.7 < found.edges[-1]
