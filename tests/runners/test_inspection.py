"""What is remembered of Beam's inspection says what Beam says anew."""

import gc
import inspect
import weakref

import apache_beam as beam
import pytest
from apache_beam.options import pipeline_options
from apache_beam.transforms import core, userstate

from runners import direct

STATE = beam.DoFn.StateParam(userstate.CombiningValueStateSpec("count", sum))


class Counts(beam.DoFn):
    def process(self, element, factor=3, state=STATE):
        yield element * factor


@pytest.fixture(autouse=True)
def remembering():
    direct.options([])


@pytest.mark.parametrize(
    "function",
    [Counts().process, Counts.process, lambda a, b=1: a, len],
    ids=["a method", "its function", "a function of its own", "a builtin"],
)
def test_arguments_are_those_of_the_signature(function):
    parameters = inspect.signature(function).parameters.values()
    expected = ([each.name for each in parameters], [each.default for each in parameters if each.default is not each.empty])
    for _ in range(2):
        names, defaults = core.get_function_args_defaults(function)
        assert (names, defaults) == expected
        names.append("spoilt")
        defaults.append("spoilt")


def test_a_method_is_read_once(monkeypatch):
    core.get_function_arguments(Counts(), "process")
    monkeypatch.setattr(inspect, "signature", lambda *_: 1 / 0)
    assert core.get_function_arguments(Counts(), "process")[0] == ["element", "factor", "state"]


def local(held: object) -> beam.DoFn:
    class Local(beam.DoFn):
        def process(self, element):
            yield held

    return Local()


def test_what_a_class_of_its_own_holds_goes_with_it():
    held = Counts()
    gone = weakref.ref(held)
    assert core.get_function_arguments(local(held), "process")[0] == ["element"]
    del held
    gc.collect()
    assert gone() is None


def test_state_is_still_found_and_checked():
    assert userstate.is_stateful_dofn(Counts())
    assert not userstate.is_stateful_dofn(beam.DoFn())


def test_options_of_one_view_are_those_of_every_other_and_of_no_other_options():
    options, others = direct.options(["--experiments=one"]), direct.options(["--experiments=one"])
    view = options.view_as(pipeline_options.DebugOptions)
    assert options.view_as(pipeline_options.DebugOptions) is view
    view.view_as(pipeline_options.DebugOptions).add_experiment("two")
    view.view_as(pipeline_options.StandardOptions).streaming = True
    assert options.view_as(pipeline_options.DebugOptions).experiments == ["one", "two"]
    assert options.view_as(pipeline_options.StandardOptions).streaming
    assert others.view_as(pipeline_options.DebugOptions).experiments == ["one"]
    assert not others.view_as(pipeline_options.StandardOptions).streaming
