"""What the benchmarks on a cluster make of what Flink says."""

import pytest

from runners.flink_rest import Subtask, Vertex
from tests.bench import cluster


def vertex(name: str, *subtasks: tuple[int, float, float]) -> Vertex:
    return Vertex(name, frozenset({"Forward"}), 0, [Subtask(*each) for each in subtasks])


def test_what_no_shared_step_runs_in_is_named_by_what_was_waited_for():
    read = vertex("read", (4, 1, 3), (4, 1, 4))
    count = vertex("count", (2, 6, 8), (2, 6, 7))
    merge = vertex("[3]ReleaseCounts/AddCounts/{CombinePerKey, UnKey}", (2, 6, 8.5), (2, 6, 8.5))
    alone = [vertex("find", (1, 0, 1)), vertex("noise", (1, 4, 5.5), (0, 4, 5.5)), vertex("commit", (1, 6, 9))]
    steps = [read, count, merge, *alone]
    given = cluster.Run(12.0, 10.0, steps, {})
    assert set(cluster.parallel(given)) == {"read", "count"}
    assert cluster.waited(given, {"read", "count"}) == {
        "find": 1,
        "noise": 1.5,
        "Flink": 1.5,
        merge.name: 0.5,
        "commit": 0.5,
    }


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("DataSource (Impulse)", "DataSource (Impulse)"),
        ("MapPartition (MapPartition at [6]{NoteCounts, A})", "[6]{A, NoteCounts}"),
        (
            "CHAIN FlatMap (FlatMap at ExtractOutput[3]) -> Map (Key Extractor) -> GroupCombine (GroupCombine at GroupCombine: "
            "Write/GroupByKey) -> Map (Key Extractor)",
            "GroupCombine: Write/GroupByKey",
        ),
        (
            "CHAIN MapPartition (MapPartition at [2]Parts/DoOnce/{FlatMap(<lambda at core.py:4094>), Map(decode)}) -> FlatMap "
            "(FlatMap at ExtractOutput[0])",
            "[2]Parts/DoOnce/{FlatMap(<lambda at core.py:4094>), Map(decode)}",
        ),
    ],
)
def test_steps_have_one_short_name(name, known):
    assert cluster.short(name) == known
