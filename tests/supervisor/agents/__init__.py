import pytest

# Assertions in the suite explain themselves like those in any test module.
pytest.register_assert_rewrite("tests.supervisor.agents.conformance")
