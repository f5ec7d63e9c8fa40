"""Remembers what Beam works out anew for each step of a pipeline: a third and more of the time of a small release."""

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core

Arguments = tuple[list[str], list[Any]]
"""Names and default values, as Beam's `get_function_args_defaults` returns them."""


@functools.cache
def remember() -> None:
    """From now on Beam reads the signature of each method once, and parses the flags once for each view of some options.

    It looks at every method of a DoFn some eight times, and makes an argparse parser for each `view_as`.
    """
    core.get_function_args_defaults = _signatures_once(core.get_function_args_defaults)
    PipelineOptions.view_as = _views_once(PipelineOptions.view_as)


def _signatures_once(read: Callable[[Any], Arguments]) -> Callable[[Any], Arguments]:
    of_methods: weakref.WeakKeyDictionary[types.FunctionType, Arguments] = weakref.WeakKeyDictionary()

    def arguments(function: Any) -> Arguments:
        method = function.__func__ if isinstance(function, types.MethodType) else None
        if not isinstance(method, types.FunctionType):
            return read(function)
        if method not in of_methods:
            of_methods[method] = read(function)
        names, defaults = of_methods[method]
        return list(names), list(defaults)

    return arguments


def _views_once(make: Callable[[PipelineOptions, type], Any]) -> Callable[[PipelineOptions, type], Any]:
    # All views of some options share their values, so one of each class does.
    views: weakref.WeakKeyDictionary[PipelineOptions, dict[type, Any]] = weakref.WeakKeyDictionary()

    def view_as(options: PipelineOptions, cls: type) -> Any:
        of_options = views.setdefault(options, {})
        if cls not in of_options:
            of_options[cls] = make(options, cls)
        return of_options[cls]

    return view_as
