"""Which loss is a spike: the robust score by hand, what it says of noise, counts and state."""

import pytest

from rlhf.config import SpikeConfig
from rlhf.loss_spikes import LossSpikeError, RepeatedSpikesError, SpikeWatch


def watch(losses: list[float], **settings: object) -> SpikeWatch:
    found = SpikeWatch(SpikeConfig.model_validate({"window_steps": 5} | settings))
    for loss in losses:
        found.accept(loss)
    return found


def test_the_score_is_the_distance_from_the_median_in_median_deviations() -> None:
    # Window of 2, 1, 4, 2, 3: median 2, deviations 0, 1, 2, 0, 1 with median 1.
    spikes = watch([9.0, 2.0, 1.0, 4.0, 2.0, 3.0])
    assert spikes.score(2 + 1.4826 * 6) == pytest.approx(6.0)
    assert spikes.score(1.0) == pytest.approx(-1 / 1.4826)


def test_nothing_is_a_spike_before_half_of_the_window_is_there() -> None:
    spikes = watch([2.0, 1.0])
    assert spikes.score(1e9) is None
    spikes.accept(1.5)
    assert spikes.score(1e9) is not None


def test_losses_without_spread_still_leave_room_for_a_thousandth() -> None:
    spikes = watch([2.0] * 5)
    assert spikes.score(2.002) == pytest.approx(1.0)
    spikes.check(2.01)
    with pytest.raises(LossSpikeError, match=r"a loss of 2\.1 is 50\.0 robust .* above the median of the 5 .*, 2$"):
        spikes.check(2.1)


def test_a_fall_is_no_spike() -> None:
    watch([2.0, 1.0, 4.0, 2.0, 3.0]).check(-1e9)


def test_counts_and_window_survive_saving_and_the_limit_ends_the_run() -> None:
    spikes = watch([2.0, 1.0, 4.0, 2.0, 3.0], max_rollbacks=2)
    spikes.count_rollback(7)
    other = watch([], max_rollbacks=2)
    other.load_state_dict(spikes.state_dict())
    assert other.score(8.0) == spikes.score(8.0)
    assert other.metrics() == {"progress/rollbacks": 1.0, "progress/skipped_sequences": 7.0}
    other.count_rollback(1)
    with pytest.raises(RepeatedSpikesError, match=r"spikes\.max_rollbacks=2"):
        other.count_rollback(1)
