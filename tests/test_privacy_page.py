"""What docs/privacy.md names is in the code, and what the code releases is in docs/privacy.md."""

import ast
import pathlib
import re

import pytest

from tests.pipelines import graph

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "privacy.md").read_text()
LINKS = sorted(set(re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)", PAGE)))


def names(path: pathlib.Path) -> set[str]:
    """What a module defines, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("name", "file"), LINKS, ids=lambda each: each)
def test_a_name_that_the_page_links_is_in_its_file(name, file):
    assert name in names(ROOT / file)


def test_every_link_of_the_page_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(LINKS) > 40
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_every_mechanism_and_every_edge_beside_them_is_on_the_page():
    linked = {name for name, _ in LINKS}
    assert {each.__name__ for each in graph.release_classes()} | {each.__name__ for each in graph.CONTROL} <= linked
