"""How frames are written in messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.sources.hand import LANDMARKS, hand_channels
from sensors.sources.payload import DECODERS, decode_binary, decode_hand, decode_json, encode_binary, encode_json
from sensors.stream import SensorError

floats32 = st.floats(width=32, allow_infinity=False)


@given(time=st.floats(-1e9, 1e9), values=st.lists(floats32, min_size=1, max_size=8))
@pytest.mark.parametrize(("encode", "decode"), [(encode_json, decode_json), (encode_binary, decode_binary)])
def test_what_is_written_is_read(encode, decode, time, values):
    written = np.array(values, np.float32)
    read_time, read = decode(encode(time, written), len(values))
    assert read_time == time
    assert read.dtype == np.float32
    assert np.array_equal(read, written, equal_nan=True)


def test_the_binary_layout_is_the_documented_one():
    message = bytes.fromhex("000000000000f83f0000803f000020c0")
    time, values = decode_binary(message, 2)
    assert time == 1.5
    assert values.tolist() == [1.0, -2.5]


def test_a_time_that_is_not_there_is_none():
    for message in ('{"v": [1]}', '{"t": null, "v": [1]}'):
        assert np.isnan(decode_json(message, 1)[0])
    assert np.isnan(decode_binary(encode_binary(float("nan"), np.float32([1])), 1)[0])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("glove", "not JSON: 'glove'"),
        (b"\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"t": 1}', "v is None, expected 2 numbers"),
        ('{"t": 1, "v": [1]}', "v is 1 values, expected 2 numbers"),
        ('{"t": 1, "v": [1, 2, 3]}', "v is 3 values, expected 2 numbers"),
        ('{"t": 1, "v": [1, "2"]}', r"v\[1\] is '2', expected a number or null"),
        ('{"t": 1, "v": [true, 2]}', r"v\[0\] is True"),
        ('{"t": 1, "v": [[1], 2]}', r"v\[0\] is \[1\]"),
        ('{"t": 1, "v": [NaN, 2]}', "NaN is no number of JSON"),
        ('{"t": "12:00", "v": [1, 2]}', "t is '12:00', expected seconds or null"),
        ('{"t": true, "v": [1, 2]}', "t is True"),
        ('{"t": 1e999, "v": [1, 2]}', "t is inf"),
        ('{"t": 1, "v": [1, 1' + "0" * 400 + "]}", "no number of a sensor"),
    ],
)
def test_json_that_is_no_frame_is_refused(message, says):
    with pytest.raises(SensorError, match=says):
        decode_json(message, 2)


@pytest.mark.parametrize("message", [b"", b"\0" * 15, b"\0" * 17, "text", b"\0\0\0\0\0\0\xf0\x7f" + b"\0" * 8])
def test_binary_of_another_size_or_time_is_refused(message):
    with pytest.raises(SensorError, match=r"expected 16 bytes|t is inf"):
        decode_binary(message, 2)


@given(message=st.one_of(st.binary(max_size=64), st.text('{}[]":,tvhand0123456789.eE-+ ul\u00e9', max_size=64)))
def test_no_message_does_more_than_be_refused(message):
    for decode in DECODERS.values():
        try:
            _, values = decode(message, 2)
        except SensorError:
            continue
        assert values.shape == (2,)


def test_a_number_too_large_for_a_sensor_is_infinite_and_so_missing():
    assert decode_json('{"v": [1e300, 1]}', 2)[1].tolist() == [np.inf, 1]


def test_a_hand_is_its_landmarks_in_order():
    channels = hand_channels()
    assert (len(LANDMARKS), len(channels)) == (21, 63)
    assert [channel.name for channel in channels[:4]] == ["wrist_x", "wrist_y", "wrist_z", "thumb_cmc_x"]
    assert LANDMARKS[8] == "index_tip"  # as MediaPipe numbers them
    assert LANDMARKS[17] == "pinky_mcp"
    points = [[index, index + 0.25, -index] for index in range(21)]
    time, values = decode_hand(f'{{"t": 2, "hand": {points}}}', 63)
    assert time == 2
    assert values.reshape(21, 3).tolist() == points


def test_a_hand_that_is_not_seen_is_missing():
    time, values = decode_hand('{"t": 2, "hand": null}', 63)
    assert time == 2
    assert np.isnan(values).all()


@pytest.mark.parametrize("message", ['{"t": 1}', '{"hand": [[1, 2]]}', '{"hand": [1, 2, 3]}', '{"hand": [[1, 2, 3]]}'])
def test_what_is_no_hand_is_refused(message):
    with pytest.raises(SensorError, match=r"hand"):
        decode_hand(message, 63)
