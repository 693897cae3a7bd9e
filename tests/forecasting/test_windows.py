import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.catalog import load
from data.frame import Channel, Dataset, Splits
from data.panel import Series, to_panel
from forecasting.task import Task, TaskError
from forecasting.training import fit_model
from forecasting.windows import (
    LengthBatches,
    Parts,
    Span,
    Window,
    WindowDataset,
    known_before,
    plan_windows,
    split,
    window_loader,
)
from models.catalog import build

VALUE = Channel("y", "1")
NO_SPLITS = Splits()


def dataset(lengths, horizon=3, splits=NO_SPLITS, start=0) -> Dataset:
    """Series a, b, ... whose value at a position says where it comes from: 1000 * series + position."""
    parts = []
    for index, length in enumerate(lengths):
        steps = np.arange(length)
        name = chr(ord("a") + index)
        parts.append(pd.DataFrame({"unique_id": name, "ds": start + steps, "y": 1000.0 * index + steps}))
    return Dataset("toy", pd.concat(parts, ignore_index=True), "forecast", (VALUE,), 1, 1, horizon, splits, "y")


def cut(lengths, horizon=3, splits=NO_SPLITS, **how) -> Parts:
    data = dataset(lengths, horizon, splits)
    return split(data, to_panel(data), Task.of(data), **how)


def recordings(names, length=6, splits=NO_SPLITS) -> Dataset:
    rows = [
        {"unique_id": name, "ds": step, "x": float(step), "label": "up" if (index + step) % 2 else "down"}
        for index, name in enumerate(names)
        for step in range(length)
    ]
    return Dataset("moves", pd.DataFrame(rows), "classify", (Channel("x", "g"),), 1, 1, 1, splits, "label")


def cut_recordings(names, splits=NO_SPLITS) -> Parts:
    data = recordings(names, splits=splits)
    return split(data, to_panel(data), Task.of(data))


def names_of(spans) -> set[str]:
    return {span.series.unique_id for span in spans}


def span_of(length, begin=0, end=None, values=None) -> Span:
    values = np.arange(length, dtype=float)[:, None] if values is None else values
    return Span(Series("a", np.arange(length), values, None), begin, length if end is None else end)


def forecast_task(horizon=1) -> Task:
    return Task("forecast", "y", (VALUE,), 1, horizon=horizon)


# Splits by time


@st.composite
def time_splits(draw):
    horizon = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 120), min_size=1, max_size=4))
    way = draw(st.sampled_from(["hold out", "no test", "test size", "cutoff", "splits", "competition"]))
    splits, how = NO_SPLITS, {}
    if way == "no test":
        how = {"hold_out": False}
    elif way == "test size":
        how = {"test_size": draw(st.integers(horizon, 40))}
    elif way == "cutoff":
        how = {"cutoff": draw(st.integers(-3, 125))}
    elif way == "splits":
        ends = sorted(draw(st.tuples(*[st.integers(0, 125)] * 3)))
        splits = Splits(
            train_until=ends[0], validation_until=ends[1], test_until=draw(st.sampled_from([None, ends[2]]))
        )
    elif way == "competition":
        splits = Splits(test_size=draw(st.integers(1, 40)))
    return lengths, horizon, splits, how


@settings(max_examples=100)
@given(time_splits())
def test_no_target_of_a_part_lies_in_a_later_part(case):
    lengths, horizon, splits, how = case
    try:
        parts = cut(lengths, horizon, splits, **how)
    except TaskError:
        return
    whole = {span.series.unique_id: span for span in parts.train}
    assert all(span.begin == 0 for span in parts.train)
    for later in (parts.validation, parts.test):
        for span in later:
            before = whole[span.series.unique_id]
            assert before.end <= span.begin
            assert span.end - span.begin >= horizon
            assert span.end <= len(span.series.ds)
            whole[span.series.unique_id] = span
    for part in (parts.train, parts.validation):
        loader = window_loader(part, forecast_task(horizon), length=7, stride=2, context=2, batch_size=4)
        limit = {1000 * (ord(span.series.unique_id) - ord("a")): span for span in part}
        for batch in loader:
            for x, target in zip(batch.x, batch.target, strict=True):
                origin = 1000 * round(float(x[0, 0]) // 1000)
                known = target[target.isfinite()]
                if known.numel():
                    assert known.min() - origin >= limit[origin].begin
                    assert known.max() - origin < limit[origin].end
                assert x.max() - origin < limit[origin].end


@settings(max_examples=100)
@given(time_splits())
def test_where_the_data_says_where_a_part_ends_nothing_after_is_in_it(case):
    lengths, horizon, splits, how = case
    last = how.get("cutoff", splits.train_until)
    if last is None:
        return
    try:
        parts = cut(lengths, horizon, splits, **how)
    except TaskError:
        return
    for span in parts.train:
        assert span.series.ds[span.end - 1] <= last
    for span in parts.test:
        assert span.series.ds[span.begin] > last


def test_a_cutoff_is_the_last_time_before_the_test():
    parts = cut([100], cutoff=79)
    (train,), (validation,), (test,) = parts.train, parts.validation, parts.test
    assert (train.begin, train.end) == (0, 64)
    assert (validation.begin, validation.end) == (64, 80)
    assert (test.begin, test.end) == (80, 100)


def test_the_ltsf_split_has_the_rows_of_its_papers():
    if not os.environ.get("MNEMO_DATA_DIR"):
        pytest.skip("MNEMO_DATA_DIR is not set: ltsf/ETTh1 is not here")
    data = load("ltsf/ETTh1")
    parts = split(data, to_panel(data), Task.of(data, horizon=96))
    for part, rows in ((parts.train, 8640), (parts.validation, 2880), (parts.test, 2880)):
        assert {span.end - span.begin for span in part} == {rows}


def test_without_a_hold_out_everything_is_learned_from():
    parts = cut([100], hold_out=False)
    assert not parts.test
    assert parts.validation[0].end == 100


def test_training_and_validation_can_be_joined_once_a_model_is_chosen():
    parts = cut([100, 50])
    joined = parts.until_test()
    assert [(span.begin, span.end) for span in joined.train] == [(0, 80), (0, 40)]
    assert not joined.validation
    assert joined.test == parts.test


def test_series_that_are_too_short_are_left_out_by_name():
    parts = cut([100, 8], test_size=3)
    assert names_of(parts.train) == {"a"}
    assert parts.notes == ("toy: 1 of 2 series are too short for a horizon of 3 and are left out: b.",)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lengths": [9, 4]}, r"toy: no series is long enough: the longest has 9 steps, .* need at least 10. Shorten"),
        ({"lengths": [50], "test_size": 2}, "a test of 2 steps is shorter than the horizon of 3; give at least 3"),
        ({"lengths": [50], "cutoff": "soon"}, "toy: 'soon' is not a cut-off of this data, whose ds is an integer"),
        ({"lengths": [50], "cutoff": float("nan")}, "toy: 'nan' is not a cut-off"),
        ({"lengths": [50], "cutoff": 2}, "toy: at most 3 steps of a series come before the test; .* need 7"),
        ({"lengths": [50], "test_size": 60}, "toy: at most 0 steps .* Let the test begin later"),
    ],
)
def test_what_cannot_be_split_says_why(how, message):
    with pytest.raises(TaskError, match=message):
        cut(**how)


def stamped() -> Dataset:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=60, freq="D"), "y": 1.0})
    frame["y"] = np.arange(60.0)
    return Dataset("days", frame, "forecast", (VALUE,), "D", 7, 3, Splits(), "y")


@pytest.mark.parametrize(
    "cutoff",
    ["2024-02-19", "2024-02-19T10:00", "2024-02-19T10:00Z", pd.Timestamp("2024-02-19"), np.datetime64("2024-02-19")],
)
def test_a_cutoff_in_time_may_be_text_or_a_time_stamp(cutoff):
    data = stamped()
    parts = split(data, to_panel(data), Task.of(data), cutoff=cutoff)
    assert parts.test[0].begin == 50


@pytest.mark.parametrize(("begin", "digits"), [(0, 1), (1_700_000_000, 1), (0.05, 2)])
def test_a_cutoff_in_seconds_is_the_step_of_that_time_whatever_its_last_bit(begin, digits):
    frame = pd.DataFrame({"unique_id": "a", "ds": begin + np.arange(60) / 10, "y": np.arange(60.0)})
    data = Dataset("seconds", frame, "forecast", (VALUE,), 0.1, 1, 3, NO_SPLITS, "y")
    for last in range(20, 55):
        parts = split(data, to_panel(data), Task.of(data), cutoff=f"{begin + last / 10:.{digits}f}")
        assert parts.test[0].begin == last + 1


@pytest.mark.parametrize("cutoff", ["5", 5, 3.5, "soon", "NaT"])
def test_a_number_is_not_taken_for_a_time_stamp(cutoff):
    data = stamped()
    with pytest.raises(TaskError, match=rf"days: '{cutoff}' is not a cut-off .* a time stamp such as 2015-06-30"):
        split(data, to_panel(data), Task.of(data), cutoff=cutoff)


# Splits by series


@given(st.integers(1, 30))
def test_no_series_is_in_two_parts(count):
    parts = cut_recordings([f"m{index:02}" for index in range(count)])
    train, validation, test = names_of(parts.train), names_of(parts.validation), names_of(parts.test)
    assert not test & (train | validation)
    assert len(train | validation | test) == count
    if not parts.notes:
        assert not train & validation


def test_the_series_of_each_part_are_those_that_the_data_names():
    entity = {"p": "train", "q": "train", "r": "validation", "s": "test"}
    parts = cut_recordings("pqrs", Splits(entity=entity))
    assert (names_of(parts.train), names_of(parts.validation), names_of(parts.test)) == ({"p", "q"}, {"r"}, {"s"})


def test_validation_series_are_taken_from_the_training_ones_where_there_are_none():
    names = [f"m{index}" for index in range(11)]
    parts = cut_recordings(names, Splits(entity={name: "train" if name != "m3" else "test" for name in names}))
    assert len(parts.validation) == 2
    assert not names_of(parts.train) & names_of(parts.validation)


def test_a_single_training_series_is_validated_on_itself_and_that_is_said():
    parts = cut_recordings("pq", Splits(entity={"p": "train", "q": "test"}))
    assert names_of(parts.train) == names_of(parts.validation) == {"p"}
    assert parts.notes == ("moves: there is one series to learn from; it is validated on what it was trained on.",)


def test_a_series_that_is_in_no_part_is_named():
    with pytest.raises(TaskError, match="moves: series q is in none of train, validation and test"):
        cut_recordings("pq", Splits(entity={"p": "train"}))


def labelled(labels, splits=NO_SPLITS) -> Parts:
    """Recordings r0, r1, ... of two steps, each of one label or, for None, of none."""
    frame = pd.DataFrame({
        "unique_id": np.repeat([f"r{index}" for index in range(len(labels))], 2), "ds": [0, 1] * len(labels),
        "x": 0.0, "label": np.repeat(np.array(labels, dtype=object), 2),
    })  # fmt: skip
    data = Dataset("moves", frame, "classify", (Channel("x", "g"),), 1, 1, 1, splits, "label")
    return split(data, to_panel(data), Task.of(data))


def test_recordings_without_an_answer_are_in_no_part_and_that_is_said():
    parts = labelled(["up", None, "down", "up", None, "down", "up"])
    assert names_of(parts.train) | names_of(parts.validation) | names_of(parts.test) == {"r0", "r2", "r3", "r5", "r6"}
    assert len(parts.test) == 2  # one of each label, as far as they can be judged
    assert parts.notes == (
        "moves: label is missing in all rows of 2 of 7 series: r1, r4. They are left out, for they neither teach nor "
        "can be judged.",
    )


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_recordings_are_dealt_by_label_so_that_what_is_judged_was_taught(counts):
    labels = [f"label {kind}" for kind, count in enumerate(counts) for _ in range(count)]
    assume(max(counts) >= 3)  # or there is no one to validate on, and some of the training part are taken
    parts = labelled(labels)
    shown = {part: names_of(getattr(parts, part)) for part in ("train", "validation", "test")}
    for kind, count in enumerate(counts):
        mine = {f"r{index}" for index, label in enumerate(labels) if label == f"label {kind}"}
        share = {part: len(mine & names) for part, names in shown.items()}
        assert share["train"] >= 1
        assert share["test"] == (count + 3) // 5
        if count % 5 == 0:
            assert share == {"train": 3 * count // 5, "validation": count // 5, "test": count // 5}


def test_a_label_that_no_recording_of_the_training_part_shows_is_named():
    where = {"r0": "train", "r1": "train", "r2": "validation", "r3": "test", "r4": "test"}
    parts = labelled(["up", "down", "up", "left", "right"], Splits(entity=where))
    assert parts.notes == (
        "moves: 2 of 4 labels occur in no series of the training part, so no model can learn them: left, right. Give "
        "more series of each.",
    )
    assert labelled(["up", "down", "up", "down", "up"], Splits(entity=where)).notes == ()


def test_someone_must_be_left_to_train_on():
    with pytest.raises(TaskError, match="moves: no series is left to train on"):
        cut_recordings("p", Splits(entity={"p": "test"}))


# Windows


@st.composite
def planned(draw):
    """A span, a window length and a context shorter than it."""
    end = draw(st.integers(1, 150))
    begin = draw(st.one_of(st.just(0), st.integers(0, end - 1)))
    length = draw(st.integers(1, 40))
    return span_of(end + draw(st.integers(0, 10)), begin, end), length, draw(st.integers(0, length - 1))


def supervised_counts(windows, span) -> np.ndarray:
    counts = np.zeros(span.end, int)
    for window in windows:
        counts[window.supervised : window.end] += 1
    return counts


@settings(max_examples=100)
@given(planned(), st.data())
def test_every_position_of_a_span_is_supervised(case, data):
    span, length, context = case
    stride = data.draw(st.integers(1, length - context))
    windows = plan_windows([span], length, stride, context)
    # The position before a span forecasts its first steps.
    assert supervised_counts(windows, span)[max(span.begin - 1, 0) :].min() >= 1
    for window in windows:
        assert 0 <= window.begin < window.end <= span.end
        assert window.end - window.begin <= length
        assert window.begin == 0 or window.supervised - window.begin >= context


@settings(max_examples=100)
@given(planned())
def test_windows_as_far_apart_as_they_are_supervised_count_every_position_once(case):
    span, length, context = case
    windows = plan_windows([span], length, length - context, context)
    counts = supervised_counts(windows, span)
    assert (counts[max(span.begin - 1, 0) :] == 1).all()
    assert counts.max() == 1


def test_a_plan_worked_out_by_hand():
    span = span_of(20, begin=10, end=18)
    assert plan_windows([span], length=5, stride=3, context=2) == [
        Window(0, 7, 12, 9), Window(0, 10, 15, 12), Window(0, 13, 18, 15),
    ]  # fmt: skip
    assert plan_windows([span_of(3)], length=5, stride=3, context=2) == [Window(0, 0, 3, 0)]
    assert plan_windows([span_of(7)], length=4, stride=2, context=2) == [
        Window(0, 0, 4, 0), Window(0, 2, 6, 4), Window(0, 3, 7, 6),
    ]  # fmt: skip


@given(planned(), st.integers(1, 5), st.integers(2, 7))
def test_with_every_the_positions_that_count_are_so_far_apart_back_from_the_end(case, horizon, every):
    span, length, context = case
    plans = {n: plan_windows([span], length, 3, context, n) for n in (1, every)}
    dense, sparse = (WindowDataset([span], forecast_task(horizon), plan) for plan in plans.values())
    for index in range(len(dense)):
        all_of, some_of = dense[[index]].target[0], sparse[[index]].target[0]
        kept = torch.arange(len(all_of)).flip(0) % every == 0
        torch.testing.assert_close(some_of[kept], all_of[kept], equal_nan=True)
        assert some_of[~kept].isnan().all()


@given(planned(), st.integers(1, 5))
def test_a_target_is_what_comes_next_and_unknown_outside_the_span(case, horizon):
    span, length, context = case
    loader = window_loader([span], forecast_task(horizon), length=length, stride=3, context=context, batch_size=3)
    for batch in loader:
        for x, target in zip(batch.x[..., 0], batch.target, strict=True):
            expected = x[:, None] + torch.arange(1, horizon + 1)  # values are positions
            inside = (expected >= span.begin) & (expected < span.end)
            known = target.isfinite()
            assert torch.equal(target[known], expected[known])
            assert not (known & ~inside).any()
            rows = known.any(-1)
            assert torch.equal(known[rows], inside[rows])


def test_a_gap_is_masked_and_is_no_target():
    values = np.arange(6.0)[:, None]
    values[3] = np.nan
    (batch,) = window_loader([span_of(6, values=values)], forecast_task(2), length=6, stride=6, context=0, batch_size=1)
    assert batch.mask[0, :, 0].tolist() == [1, 1, 1, 0, 1, 1]
    assert batch.target[0, :4].isfinite().tolist() == [[True, True], [True, False], [False, True], [True, True]]


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_answers_outside_a_span_are_unknown(kind):
    classes = kind == "classify"
    target = np.array([0, 1, 1, 0, 1]) if classes else np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    series = Series("a", np.arange(5), np.zeros((5, 1)), target)
    task = Task(kind, "label", (VALUE,), 1, labels=("p", "q") if classes else ())
    (batch,) = window_loader([Span(series, 1, 4)], task, length=9, stride=9, context=3, batch_size=1)
    known = batch.target[0] >= 0 if classes else batch.target[0].isfinite()
    assert known.tolist() == [False, True, True, True]  # a window ends with its span
    assert target.tolist() == [0, 1, 1, 0, 1]


# Statistics


def learned(parts, task) -> list[torch.Tensor]:
    """All that comes from the data before gradient descent begins, and the closed form."""
    ridge = fit_model("ridge", task, parts, settings={"lags": 4}).model
    torch.manual_seed(0)
    network = build("gru", task.signature, hidden=8, skip_lags=4)
    batches = window_loader(parts.train, task, length=40, stride=37, context=3, batch_size=8)
    network.prepare(batches)
    scales = torch.cat([batch.scale for batch in batches])
    return [*ridge.state_dict().values(), *network.state_dict().values(), scales]


def test_statistics_come_from_training_alone():
    values = np.random.default_rng(0).normal(size=(90, 1)).cumsum(0)
    task = forecast_task(3)
    parts = Parts([span_of(90, 0, 50, values)], [span_of(90, 50, 70, values)], [span_of(90, 70, 90, values)])
    other = np.concatenate([values[:50], 1e4 * np.random.default_rng(1).normal(size=(40, 1))])
    changed = Parts(*[[replace(s, series=replace(s.series, values=other)) for s in part] for part in
                      (parts.train, parts.validation, parts.test)])  # fmt: skip
    before, after = learned(parts, task), learned(changed, task)
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


# The order of batches


def windows_of(lengths) -> list[Window]:
    return [Window(0, 0, length, 0) for length in lengths]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_has_every_window_once_in_batches_of_one_length(lengths, size, seed, epoch):
    windows = windows_of(lengths)
    sampler = LengthBatches(windows, size, shuffle=True, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(windows)))
    assert all(len({lengths[index] for index in batch}) == 1 and len(batch) <= size for batch in batches)
    assert len(sampler) == len(batches)


def test_the_order_of_batches_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, drawn_before=0):
        np.random.default_rng().random(drawn_before)
        torch.rand(drawn_before)
        sampler = LengthBatches(windows_of([5] * 60), 4, shuffle=True, seed=seed)
        for _ in range(drawn_before):
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2, drawn_before=3)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_unshuffled_batches_can_be_iterated_again():
    loader = window_loader([span_of(50), span_of(20)], forecast_task(), length=8, stride=5, context=3, batch_size=3)
    first, second = list(loader), list(loader)
    assert all(torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in
               zip((left.x, left.mask), (right.x, right.mask), strict=True))  # fmt: skip


def test_a_window_knows_the_statistics_of_what_came_before_it_and_of_nothing_after():
    values = 1e4 + np.random.default_rng(0).normal(size=(40, 1))
    values[[3, 17]] = np.nan
    loader = window_loader([span_of(40, values=values)], forecast_task(2), length=8, stride=4, context=0, batch_size=1)
    for batch, begin in zip(loader, range(0, 36, 4), strict=True):
        known = values[:begin][np.isfinite(values[:begin])]
        expected = [len(known), known.mean(), known.std()] if begin else [0, 0, 0]
        assert batch.before is not None
        np.testing.assert_allclose(batch.before[0].numpy(), expected, rtol=1e-5)


def test_what_is_known_of_a_person_is_all_that_they_showed_in_earlier_series_and_nothing_later():
    rng = np.random.default_rng(0)
    panel = [
        Series(name, np.arange(6), 1e3 + rng.normal(size=(6, 2)), np.zeros(6, int)) for name in ("a1", "b1", "a2", "a3")
    ]
    panel[0].values[2:, 1] = np.nan
    known = known_before(panel, {"a1": "a", "a2": "a", "a3": "a", "b1": "b"})
    shown = np.concatenate([panel[0].values, panel[2].values])
    assert not known["a1"].any()
    assert not known["b1"].any()
    np.testing.assert_allclose(known["a2"][1], np.nanmean(panel[0].values, 0))
    np.testing.assert_allclose(known["a3"], [[12, 8], np.nanmean(shown, 0), np.nanvar(shown, 0)])


def test_windows_carry_what_is_known_of_their_person():
    known = np.arange(3.0)[:, None]
    spans = [replace(span_of(20), known=known), span_of(20)]
    for batch in window_loader(spans, forecast_task(), length=8, stride=8, context=0, batch_size=8):
        assert batch.known is not None
        told = {tuple(row.flatten().tolist()) for row in batch.known}
        assert told == {(0.0, 1.0, 2.0), (0.0, 0.0, 0.0)}
    (batch,) = window_loader([span_of(8)], forecast_task(), length=8, stride=8, context=0, batch_size=8)
    assert batch.known is None


PEOPLE = Splits(
    entity={
        "ana/1": "train",
        "ana/2": "train",
        "bo/1": "validation",
        "bo/2": "validation",
        "cy/1": "test",
        "cy/2": "test",
    },
    group={f"{person}/{number}": person for person in ("ana", "bo", "cy") for number in (1, 2)},
)


def test_with_known_owner_every_part_begins_with_what_its_people_have_shown():
    hands = recordings(sorted(PEOPLE.group), splits=PEOPLE)
    panel, task = to_panel(hands), Task.of(hands)
    parts = split(hands, panel, task, known_owner=True)
    for first, second in (parts.train, parts.validation, parts.test):
        assert first.known is not None
        assert not first.known.any()
        shown = first.series.values
        np.testing.assert_allclose(second.known, [[6], shown.mean(0), shown.var(0)])
    assert all(span.known is None for span in split(hands, panel, task).test)


def test_known_owner_is_refused_where_nobody_owns_a_series_or_parts_are_cut_in_time():
    hands = recordings(sorted(PEOPLE.group), splits=PEOPLE)
    nobodys = replace(hands, splits=replace(PEOPLE, group=None))
    partly = replace(hands, splits=replace(PEOPLE, group={"ana/1": "ana"}))
    for data, cut in ((nobodys, {}), (partly, {}), (hands, {"test_size": 3})):
        with pytest.raises(TaskError, match="moves: known_owner takes data whose parts are whole series"):
            split(data, to_panel(data), Task.of(data), known_owner=True, **cut)
