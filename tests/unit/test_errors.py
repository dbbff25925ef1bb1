from __future__ import annotations

import pickle

from rtdetrv4.errors import MissingDependencyError, WeightsError, did_you_mean, one_line, shown


def test_messages_control_no_terminal() -> None:
    error = WeightsError("class \x1b]0;title\x07\x1b[2J of\r\na\u202eb \ud800")
    assert str(error) == r"class \x1b]0;title\x07\x1b[2J of  a\u202eb \ud800"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(MissingDependencyError("torch\n")) == "torch "
    assert one_line("Kätzchen 猫 – ok") == "Kätzchen 猫 – ok"


def test_messages_are_not_endless() -> None:
    message = str(WeightsError(f"begin {'x' * 10**6} end"))
    assert len(message) < 2100
    assert message.startswith("begin x")
    assert message.endswith("x end")


def test_values_are_shown_in_part() -> None:
    assert shown("50") == "'50'"
    assert shown([1, "two", None]) == "[1, 'two', None]"
    assert len(shown("x" * 10**6)) < 150
    doubled: list[object] = ["x"]
    for _ in range(100):
        doubled = [doubled, doubled]
    assert len(shown(doubled)) < 1000


def test_no_name_is_similar_to_an_endless_one() -> None:
    assert did_you_mean("epocs", ["epochs", "batch"]) == ' Did you mean "epochs"?'
    assert did_you_mean("a" * 10**6, ["a" * (10**6 - 1)]) == ""
    assert did_you_mean("epocs", (f"{number}" * 100 for number in range(10**9))) == ""
