"""Beam pipelines of jobs as they would run, wired and not run; and what in them is published without noise."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import PCollection

from data import ledger
from transforms.release import admission, commit, cooccurrence, counts, evaluation, grant, reference, selection, tally

NOISE = {
    selection.ReleaseSelection: "AddNoise",
    counts.ReleaseCounts: "AddNoise",
    cooccurrence.ReleaseCooccurrence: "AddNoise",
    evaluation.ReleaseEvaluation: "AddNoise",
    reference.ReleaseReferenceCounts: "Compute DP metrics",
    reference.ReleaseReferenceCooccurrence: "Compute DP metrics",
}
"""The step of each Release... that draws its noise: what comes out of it is public. The last two are PipelineDP's."""

CONTROL = {
    # A release id, drawn at random, a fence and a status. Whether there is one hangs on the share of malformed rows and on
    # the budget: a refusal is for the operator, outside the claim (docs/privacy.md).
    grant.ReserveBudget: "Reserve",
    # Yields the grants as they came, once counts are in the operator's run record.
    tally.NoteCounts: "Note",
    # The grants with the digest of their page of the contribution book. Release... steps take from a grant that it is there
    # and its id; CommitRelease the id and the fence (test_a_grants_page_is_nowhere_in_what_is_published).
    admission.AdmitUsers: "FinishPage",
}
"""The step of each transform that gives grants: the only edges from events to what is published beside those with noise."""

SINKS = {
    "CommitRelease": "the published side",
    # STORE/operator/dead_letters, mode 0700
    "WriteDeadLetters": "the operator's",
    # STORE/operator/stream, mode 0700: windows that wait for their release, which reads them as the source of a job of its own
    "StreamWindows": "the operator's",
}
"""What nobody reads on, by the outermost transform that ends there."""


class BuiltError(Exception):
    """A pipeline that would run now."""

    def __init__(self, pipeline: beam.Pipeline):
        super().__init__("built")
        self.pipeline = pipeline


def built(run: Callable[[], Any]) -> beam.Pipeline:
    """The pipeline that a job comes to run."""

    def stop(pipeline: beam.Pipeline, *_: Any, **__: Any) -> None:
        raise BuiltError(pipeline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam.Pipeline, "run", stop)
        with pytest.raises(BuiltError) as found:
            run()
    return found.value.pipeline


def steps(pipeline: beam.Pipeline) -> list[AppliedPTransform]:
    """All steps that are made of no others."""
    found = []

    class Leaves(PipelineVisitor):
        def visit_transform(self, transform_node: AppliedPTransform) -> None:
            found.append(transform_node)

    pipeline.visit(Leaves())
    return found


def inputs(step: AppliedPTransform) -> list[PCollection]:
    """What a step reads, side inputs too."""
    return [each for each in (*step.inputs, *(side.pvalue for side in step.side_inputs)) if isinstance(each, PCollection)]


def around(step: AppliedPTransform) -> Iterator[AppliedPTransform]:
    """The transforms that a step is part of, the innermost first."""
    while (step := step.parent) is not None:
        yield step


def _is_step_of(step: AppliedPTransform, known: dict[type, str]) -> bool:
    """Whether it is the very step of one of these transforms, with one output alone."""
    return any(
        step.full_label == f"{outer.full_label}/{known[type(outer.transform)]}" and set(step.outputs) == {None}
        for outer in around(step)
        if type(outer.transform) in known
    )


def is_noise(step: AppliedPTransform) -> bool:
    return _is_step_of(step, NOISE)


def is_control(step: AppliedPTransform) -> bool:
    return _is_step_of(step, CONTROL)


def is_default(step: AppliedPTransform) -> bool:
    """Whether it is where Beam starts what an empty CombineGlobally gives: no event comes from there."""
    return any(
        outer.full_label.rpartition("/")[2] == "DoOnce" and isinstance(outer.parent.transform, beam.CombineGlobally)
        for outer in around(step)
    )


def bypass(given: PCollection) -> list[str] | None:
    """The way that something takes from where the pipeline begins without noise, as labels; None: there is none."""
    step = given.producer
    if is_noise(step) or is_control(step):
        return None
    read = inputs(step)
    if not read:
        return None if is_default(step) else [step.full_label]
    for each in read:
        if way := bypass(each):
            return [*way, step.full_label]
    return None


def commits(pipeline: beam.Pipeline) -> list[commit.CommitRelease]:
    """The pipeline's CommitRelease transforms."""
    found = {outer.transform for step in steps(pipeline) for outer in around(step)}
    return [each for each in found if isinstance(each, commit.CommitRelease)]


def bypasses(pipeline: beam.Pipeline) -> list[str]:
    """Every way on which something without noise is published, every end that nobody has named, and grants that are none."""
    found, read = [], {id(each) for step in steps(pipeline) for each in inputs(step)}
    for step in steps(pipeline):
        if any(isinstance(outer.transform, commit.CommitRelease) for outer in around(step)):
            found += [" -> ".join([*way, step.full_label]) for each in inputs(step) if (way := bypass(each))]
        if not any(id(each) in read for each in step.outputs.values()) and step.full_label.partition("/")[0] not in SINKS:
            found.append(f"{step.full_label}: ends here")
        if is_control(step) and step.outputs[None].element_type is not ledger.Grant:
            found.append(f"{step.full_label}: gives {step.outputs[None].element_type}, not grants")
    return found


def committed(pipeline: beam.Pipeline) -> list[PCollection]:
    """What CommitRelease reads."""
    inner = [
        each for each in steps(pipeline) if any(isinstance(outer.transform, commit.CommitRelease) for outer in around(each))
    ]
    return [each for step in inner for each in inputs(step) if each.producer not in inner]


def matches(pattern: str, way: str) -> bool:
    """Whether a way is one of this kind."""
    return re.search(pattern, way) is not None


def sources(given: PCollection) -> set[str]:
    """The labels of all steps that something comes from."""
    return {given.producer.full_label}.union(*(sources(each) for each in inputs(given.producer)))


def release_classes() -> set[type]:
    """All transforms named Release... ."""
    rooms = (selection, counts, cooccurrence, evaluation, reference)
    return {
        each
        for room in rooms
        for name, each in inspect.getmembers(room, inspect.isclass)
        if name.startswith("Release") and issubclass(each, beam.PTransform)
    }
