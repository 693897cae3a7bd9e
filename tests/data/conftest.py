"""A new store for a test, of either kind of database."""

import pytest

from data import store as stores
from data.store import Store
from tests.postgres import server


@pytest.fixture(scope="package")
def postgres():
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'folder' / 'store.db'}"
    else:
        url = request.getfixturevalue("postgres")
    opened = Store(url)
    if request.param == "postgresql":  # one server serves all tests
        with opened.writing() as connection:
            stores._TABLES.drop_all(connection)
        opened.close()
        opened = Store(url)
    yield opened
    opened.close()
