"""Test-time memories: weights that go on learning while the model reads."""
