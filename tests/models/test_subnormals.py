import pytest
import torch

from models.subnormals import without_subnormals


def there() -> bool:
    return bool(torch.tensor(1e-39) * 1.0)


@pytest.fixture(autouse=True)
def able():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps subnormal numbers")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


def test_subnormal_numbers_count_as_nothing_inside_and_as_before_afterwards():
    for _ in range(2):
        assert there()
        with without_subnormals():
            assert not there()
            with without_subnormals():
                assert not there()
            assert not there()
    assert there()


def test_an_error_inside_leaves_no_trace():
    @without_subnormals()
    def failing() -> None:
        assert not there()
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        failing()
    assert there()
