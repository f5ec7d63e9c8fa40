"""`sottovoce train`: the job's settings reach the model's tables."""

from data import tables
from pipelines import release, train
from tests.pipelines import example
from tests.pipelines.example import view

PEOPLE = [view(f"user{user}", item, f"{user}{item}") for user in range(40) for item in ("ab", "cd", "abcd")[user % 3]]
GENRES = {"a": "fruit", "b": "fruit", "c": "root", "d": "root"}
ONE_OF_A_GENRE = [
    "--diversity.method=dpp",
    "--diversity.trade_off=0.5",
    "--diversity.max_per_category=1",
    "--diversity.category_feature=genre",
]


def test_recommendations_are_re_ranked_as_the_job_says(tmp_path):
    path = example.write_job(tmp_path, PEOPLE)
    release.run(example.load(path))
    found = {}
    for name, flags in (("plain", []), ("diverse", ONE_OF_A_GENRE)):
        job = example.load(path, *flags)
        model = train.run(job)
        assert model.manifest["parameters"]["diversity"] == job.diversity.model_dump()
        table = model.read_table("recommendations", tables.RECOMMENDATIONS).to_pylist()
        found[name] = [row["recommended_item_id"] for row in table if row["item_id"] == "a"]
    assert sorted(found["plain"]) == ["b", "c", "d"]
    assert sorted(GENRES[item] for item in found["diverse"]) == ["fruit", "root"]


def test_the_model_is_of_the_kind_that_the_job_says(tmp_path):
    path = example.write_job(tmp_path, PEOPLE)
    release.run(example.load(path))
    found = {}
    for kind in ("ensemble", "hybrid"):
        model = train.run(example.load(path, f"--model.kind={kind}", "--model.signal=low-rank"))
        assert model.manifest["model"] == kind
        assert model.manifest["parameters"]["kind"] == kind
        assert model.manifest["parameters"]["signal"] == "low-rank"
        found[kind] = model.read_table("embeddings", tables.EMBEDDINGS)
    assert not found["ensemble"].equals(found["hybrid"])
