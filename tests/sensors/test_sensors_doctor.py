"""What does not work is told with its reason, and the rest is still looked at."""

import sys

from sensors import doctor


def test_all_that_the_extra_installs_works_here():
    rows = doctor.examine()
    assert {row.works for row in rows} == {"yes"}, rows


def test_a_package_that_is_missing_is_named_and_the_others_are_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "pylsl", None)
    rows = {row.what: row for row in doctor.examine()}
    assert rows["Lab Streaming Layer"].works == "no"
    assert "pylsl is not installed" in rows["Lab Streaming Layer"].found
    assert "mnemosyne-forecast[robot]" in rows["Lab Streaming Layer"].remedy
    assert rows["MQTT"].works == "yes"
