from datetime import time, timedelta

import pytest

from forecasting.plan import PlanError, of_spec, read_plan

GOOD = """
name = "nightly"
at = ["02:30", "14:00"]

[[job]]
name = "shops"
data = "shops/*.csv"
bundle = "bundles/shops"
out = "f/shops.parquet"
adapt = 0.05

[[job]]
name = "reference"
data = "sp500"
model = "sktime:ThetaForecaster"
horizon = 14
set = { deseasonalize = true }
"""
JOB = '[[job]]\nname = "a"\ndata = "a.csv"\n'
BUNDLE = JOB + 'bundle = "b"\n'
MODEL = JOB + 'model = "sktime:ThetaForecaster"\n'


def written(folder, text):
    place = folder / "plan.toml"
    place.write_text(text)
    return place


def test_paths_are_of_the_plans_folder_and_names_of_data_sets_are_left(tmp_path):
    plan = read_plan(written(tmp_path, GOOD))
    shops, reference = plan.jobs
    assert plan.name == "nightly"
    assert plan.at == (time(2, 30), time(14))
    assert (shops.data, shops.bundle) == (f"{tmp_path}/shops/*.csv", f"{tmp_path}/bundles/shops")
    assert (shops.out, shops.adapt, shops.carry) == (f"{tmp_path}/f/shops.parquet", 0.05, True)
    assert (reference.data, reference.horizon, reference.set) == ("sp500", 14, {"deseasonalize": True})
    assert of_spec(plan.spec) == plan


def test_a_plan_is_called_as_its_file_and_a_marked_path_stays_marked(tmp_path):
    plan = read_plan(
        written(tmp_path, BUNDLE.replace("a.csv", "csv:/x/a.txt") + '\n[[job]]\nname="c"\ndata="~/a.csv"\nbundle="/b"')
    )
    assert (plan.name, plan.at, plan.every) == ("plan", (), None)
    assert plan.jobs[0].data == "csv:/x/a.txt"
    assert not plan.jobs[1].data.startswith("~")
    assert plan.jobs[1].bundle == "/b"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("30s", timedelta(seconds=30)),
        ("15min", timedelta(minutes=15)),
        ("6 h", timedelta(hours=6)),
        ("1d", timedelta(1)),
    ],
)
def test_steps(tmp_path, text, step):
    assert read_plan(written(tmp_path, f'every = "{text}"\n{BUNDLE}')).every == step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML"),
        ("name = 'x'", r"has one \[\[job\]\] or more"),
        ("job = 3", r"has one \[\[job\]\] or more"),
        ("jobs = 3\n" + BUNDLE, "unknown key jobs. Did you mean job"),
        ("zzz = 3\n" + BUNDLE, "unknown key zzz. Known: at, every, job, keep, name"),
        (BUNDLE + "bundel = 3", "job a: unknown key bundel. Did you mean bundle"),
        ("name = 'a b'\n" + BUNDLE, "name is letters, digits"),
        ('[[job]]\nname = "../a"\ndata = "a.csv"\nbundle = "b"', "name is letters, digits"),
        ('[[job]]\nbundle = "b"', "job 1: lacks name and data"),
        (JOB, "job a: needs a bundle or a model"),
        (BUNDLE + 'model = "sktime:X"', "job a: needs a bundle or a model, one of them"),
        (JOB + 'model = "gru"', "job a: gru is trained before it forecasts: `mnemo train` it and name its bundle"),
        (BUNDLE + "horizon = 3", "job a: horizon is for a model; leave it out"),
        (BUNDLE + 'freq = "D"', "job a: freq is for a model; leave it out"),
        (MODEL + "carry = false", "job a: carry is for a bundle; leave it out"),
        (MODEL + "horizon = 0", "job a: horizon is at least 1, got 0"),
        (MODEL + 'horizon = "3"', "job a: horizon is a whole number, got '3'"),
        (MODEL + "horizon = true", "job a: horizon is a whole number, got True"),
        (BUNDLE + "carry = 1", "job a: carry is true or false, got 1"),
        (BUNDLE + 'out = "f.xlsx"', "job a: out is a .parquet or .csv file"),
        (BUNDLE + 'out = "a.csv"', "job a: out, a.csv, is among its data"),
        (BUNDLE.replace("a.csv", "*.csv") + 'out = "f.csv"', "job a: out, f.csv, is among its data"),
        (BUNDLE + "\n" + BUNDLE, "two jobs have the name a"),
        (BUNDLE + 'out="x.csv"\n' + BUNDLE.replace('"a"', '"c"') + 'out="x.csv"', "two jobs have the out"),
        ('at = "25:00"\n' + BUNDLE, "at is a time of the day or a list of them.*got '25:00'"),
        ('at = "02:00+01:00"\n' + BUNDLE, "leave the offset"),
        ("at = 3\n" + BUNDLE, "at is a time of the day"),
        ('every = "soon"\n' + BUNDLE, 'every is a step such as "15min"'),
        ('every = "0h"\n' + BUNDLE, 'every is a step such as "15min"'),
        ("keep = 0\n" + BUNDLE, "keep is a number of runs, at least 1; got 0"),
        ("keep = true\n" + BUNDLE, "keep is a number of runs, at least 1; got True"),
        ('at = "02:00"\nevery = "1h"\n' + BUNDLE, "at and every are both given"),
    ],
)
def test_what_is_wrong_is_named_with_file_job_and_key(tmp_path, text, message):
    with pytest.raises(PlanError, match=message) as refused:
        read_plan(written(tmp_path, text))
    assert str(refused.value).startswith(str(tmp_path / "plan.toml"))


def test_a_plan_that_is_not_there_is_said(tmp_path):
    with pytest.raises(PlanError, match=r"none.toml: cannot be read \(No such file"):
        read_plan(tmp_path / "none.toml")
