"""What a stream says of its frames before it gives any."""

import numpy as np
import pytest

from data.frame import Channel
from sensors.stream import SensorError, StreamInfo

INFO = StreamInfo("glove", (Channel("bend", "deg", 0.0, 90.0), Channel("twist", "deg")), rate_hz=100.0)


@pytest.mark.parametrize(
    ("values", "observed"),
    [
        ([0.0, 1.0], [True, True]),
        ([90.0, -1e30], [True, True]),  # a limit itself is allowed, and an open one is open
        ([90.1, 1.0], [False, True]),
        ([-0.1, 1.0], [False, True]),
        ([np.nan, np.nan], [False, False]),
        ([1.0, np.inf], [True, False]),
        ([1.0, -np.inf], [True, False]),
    ],
)
def test_what_is_no_number_or_beyond_its_limits_is_missing(values, observed):
    frame = INFO.frame(1.5, 2.5, values)
    assert frame.mask.tolist() == observed
    assert (frame.stream_id, frame.time, frame.received) == ("glove", 1.5, 2.5)
    assert frame.values.dtype == np.float32


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]])
def test_a_frame_of_another_size_is_refused_with_the_channels(values):
    with pytest.raises(SensorError, match="expected 2 values: bend, twist"):
        INFO.frame(0.0, 0.0, values)


def test_a_stream_without_channels_is_refused():
    with pytest.raises(SensorError, match="at least one channel"):
        StreamInfo("glove", (), rate_hz=100.0)
