"""The trials of the memory benchmark: what is asked can be known, is known to a solver, and nothing else is told."""

import pytest
import torch
from benchmarks.recall_data import (
    BLANK,
    KEYS,
    RECALL,
    SYMBOLS,
    UNASKED,
    VALUES,
    VOCABULARY,
    AssociativeRecall,
    Needle,
    Regimes,
    SelectiveCopy,
    SerialRecall,
    asked,
)

PAIRED = (AssociativeRecall(), AssociativeRecall(pairs=3), Needle())
ORDERED = (SelectiveCopy(), SerialRecall(), SerialRecall(items=5, pause=9))
TASKS = (*PAIRED, *ORDERED)


def draw(task, length=40, trials=64, seed=0):
    return task(length, trials, torch.Generator().manual_seed(seed))


def is_key(token):
    return KEYS.start <= token < KEYS.stop


def is_value(token):
    return VALUES.start <= token < VALUES.stop


def look_up(tokens):
    """Answers to the keys of one trial: the value that followed the key before; read from the left, once."""
    known, answers = {}, []
    for at, token in enumerate(tokens):
        answers.append(known.get(token, UNASKED) if is_key(token) else UNASKED)
        if at and is_key(tokens[at - 1]) and is_value(token):
            known[tokens[at - 1]] = token
    return answers


def repeat(tokens):
    """Answers of one trial in order: after RECALL the items before it, one at a time."""
    begin = tokens.index(RECALL)
    items = [token for token in tokens[:begin] if token != BLANK]
    answers = [UNASKED] * len(tokens)
    answers[begin : begin + len(items)] = items
    return answers


@pytest.mark.parametrize("task", PAIRED, ids=repr)
def test_one_that_looks_keys_up_answers_every_pair(task):
    trials = draw(task)
    for tokens, targets in zip(trials.tokens.tolist(), trials.targets.tolist(), strict=True):
        assert look_up(tokens) == targets


@pytest.mark.parametrize("task", ORDERED, ids=repr)
def test_one_that_repeats_what_it_heard_answers_every_item(task):
    trials = draw(task)
    for tokens, targets in zip(trials.tokens.tolist(), trials.targets.tolist(), strict=True):
        assert repeat(tokens) == targets
        answers = [target for target in targets if target != UNASKED]
        assert len(set(answers)) == len(answers)  # else a cue would have two answers


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_item_of_a_trial_is_asked_once_and_nothing_else_is(task):
    trials = draw(task)
    there = trials.targets != UNASKED
    assert torch.equal(there, trials.item >= 0)
    counts = there.sum(1)
    assert (counts == counts[0]).all()
    for items, due in zip(trials.item, there, strict=True):
        assert items[due].sort().values.tolist() == list(range(counts[0]))
    assert all(is_value(target) for target in trials.targets[there].tolist())


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_what_is_not_asked_is_no_part_of_the_loss(task):
    trials = draw(task)
    logits = torch.randn(*trials.tokens.shape, VOCABULARY, requires_grad=True)
    chosen, targets, item = asked(logits, trials)
    assert len(chosen) == len(targets) == len(item) == (trials.item >= 0).sum()
    torch.nn.functional.cross_entropy(chosen, targets).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, trials.item >= 0)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_the_answer_is_not_among_what_the_model_sees_at_the_question(task):
    """A copy of the present token is never right, and the last one no more often than chance."""
    trials = draw(task, trials=400)
    there = trials.targets != UNASKED
    assert (trials.tokens[there] != trials.targets[there]).all()
    before = trials.tokens.roll(1, 1)
    assert (before[there] == trials.targets[there]).float().mean() < 3 / SYMBOLS


def test_all_tasks_fill_the_length_asked_for_so_that_it_tells_neither_task_nor_load():
    for length in (40, 47, 64):
        for task in (*TASKS, SerialRecall(items=2), SerialRecall(items=16, pause=0), SelectiveCopy(items=3)):
            trials = draw(task, length)
            assert all(part.shape == (64, length) for part in trials)
            assert trials.tokens.min() >= 0
            assert trials.tokens.max() < VOCABULARY


def test_associative_recall_holds_a_quarter_as_many_pairs_as_tokens():
    for length in (4, 8, 64, 128):
        trials = draw(AssociativeRecall(), length)
        assert ((trials.targets != UNASKED).sum(1) == length // 4).all()


def test_items_are_numbered_in_the_order_in_which_they_came():
    trials = draw(AssociativeRecall(), 32)
    for tokens, targets, item in zip(*(part.tolist() for part in trials), strict=True):
        stored = [token for token in tokens[:16] if is_value(token)]
        assert all(stored[i] == target for i, target in zip(item, targets, strict=True) if i >= 0)


def test_a_task_that_does_not_fit_its_length_says_what_it_needs():
    with pytest.raises(ValueError, match="needle of 4 pairs needs a length of at least 12 tokens, got 11"):
        draw(Needle(), 11)
    with pytest.raises(ValueError, match="1 to 32 pairs; a length of 256 has 64"):
        draw(AssociativeRecall(), 256)
    with pytest.raises(ValueError, match="8 items and a pause of 4 needs a length of at least 21"):
        draw(SerialRecall(items=8), 20)


def test_a_seed_gives_the_same_trials_and_another_one_others():
    for task in TASKS:
        assert torch.equal(draw(task).tokens, draw(task).tokens)
        assert not torch.equal(draw(task).tokens, draw(task, seed=1).tokens)


def nearest(values, reach=4):
    """Forecast of the next value of every t: what followed the most similar stretch of `reach` values before."""
    windows = values[:, :-1].unfold(1, reach, 1)  # of the past, ending at reach - 1, ...
    forecast = torch.zeros_like(values[:, :-1])
    for t in range(2 * reach, values.shape[1] - 1):
        now = values[:, t - reach + 1 : t + 1]
        distance = (windows[:, : t - reach + 1] - now[:, None]).square().sum(-1)
        forecast[:, t] = values.gather(1, distance.argmin(1, keepdim=True) + reach)[:, 0]
    return forecast


def test_patterns_return_noisy_in_another_order_and_one_that_remembers_them_forecasts_them_the_second_time():
    task = Regimes(patterns=4, duration=16, persistence=0.7)
    series = task(127, 200, torch.Generator().manual_seed(0))
    assert series.values.shape == (200, 128)
    assert abs(series.values.std().item() - 1) < 0.05
    error = (nearest(series.values) - series.values[:, 1:]).square()
    shown = series.phase >= 4
    first, second = (error[shown & (series.occurrence == n)].mean().item() for n in (0, 1))
    assert second < 0.1
    assert first > 0.5
    # Without a memory nothing beats the correlation of neighbours, 1 - 0.7^2 of the variance.
    bound = (0.7 * series.values[:, :-1] - series.values[:, 1:]).square()[shown].mean().item()
    assert 0.48 < bound < 0.54
    segments = series.values.unflatten(1, (8, 16))
    orders = torch.cdist(segments[:, 4:], segments[:, :4]).argmin(-1)
    assert torch.equal(orders.sort(-1).values, torch.arange(4).expand(200, -1))
    assert orders.unique(dim=0).shape[0] > 10
