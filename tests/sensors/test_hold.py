"""A pedal behind a broker holds while it says so; whatever else comes, or does not, lets go."""

import time

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from sensors.hold import HoldTopic, TopicHold
from sensors.robot import RobotError
from sensors.stream import SensorError
from tests.sensors.broker import Broker, free_port

LONG = 10


class Heard:
    def __init__(self):
        self.holds, self.releases = [], 0

    def hold(self, received):
        self.holds.append(received)

    def release(self):
        self.releases += 1


def until(true):
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def pedal(tmp_path):
    """A broker, what is heard, and the way to say something."""
    with Broker(tmp_path, "allow_anonymous true") as broker:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        yield broker, Heard(), lambda payload, **how: client.publish("pedal", payload, **how).wait_for_publish()
        client.disconnect()
        client.loop_stop()


def test_a_pedal_holds_from_when_it_was_heard_and_lets_go(pedal):
    broker, heard, say = pedal
    with TopicHold(HoldTopic("127.0.0.1", broker.port, topic="pedal"), heard.hold, heard.release):
        before = time.monotonic()
        say(b"1")
        until(lambda: heard.holds)
        assert before <= heard.holds[0] <= time.monotonic()
        assert heard.releases == 0
        say(b"0")
        until(lambda: heard.releases)
    assert len(heard.holds) == 1


def test_what_is_not_understood_lets_go_and_is_counted(pedal):
    broker, heard, say = pedal
    with TopicHold(HoldTopic("127.0.0.1", broker.port, topic="pedal"), heard.hold, heard.release) as hold:
        say(b"yes please")
        until(lambda: heard.releases)
        assert hold.refused == 1
    assert not heard.holds


def test_a_hold_that_the_broker_kept_from_before_does_not_hold(pedal):
    broker, heard, say = pedal
    say(b"1", retain=True)
    with TopicHold(HoldTopic("127.0.0.1", broker.port, topic="pedal"), heard.hold, heard.release):
        say(b"0")
        until(lambda: heard.releases)
    assert not heard.holds


def test_a_lost_broker_lets_go(pedal):
    broker, heard, say = pedal
    with TopicHold(HoldTopic("127.0.0.1", broker.port, topic="pedal"), heard.hold, heard.release):
        say(b"1")
        until(lambda: heard.holds)
        broker.kill()
        until(lambda: heard.releases)


def test_a_topic_with_wildcards_or_none_is_refused():
    for topic in ("", "pedal/#", "+/pedal"):
        with pytest.raises(SensorError, match="topic is"):
            HoldTopic("127.0.0.1", topic=topic)


def test_no_broker_is_an_error_at_the_start():
    with (
        pytest.raises(RobotError),
        TopicHold(HoldTopic("127.0.0.1", free_port(), topic="pedal"), lambda at: None, lambda: None),
    ):
        pass
