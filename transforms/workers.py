"""Which worker a step runs in, where the runner has several (runners/flink.py has processes)."""

from typing import Any

import apache_beam as beam
from apache_beam.transforms import resources


class _Worker(resources.ResourceHint):
    """A runner gives steps with other hints another environment, and each environment a worker of its own."""

    urn = "sottovoce:worker:v1"


resources.ResourceHint.register_resource_hint("worker", _Worker)


def run_in(number: int, step: beam.PTransform) -> beam.PTransform[Any, Any]:
    """Has a step run in the worker of that number; 0 is where all other steps run."""
    return step.with_resource_hints(worker=str(number)) if number else step
