"""The table of promises in reports/README.md names what this suite holds, with its numbers."""

import collections
import os

import faulty
import pytest
from project import WHOLE


@pytest.mark.faults
def test_every_test_of_faults_holds_a_promise_that_the_table_states(request):
    items = [item for item in request.session.items if item.get_closest_marker("faults") and item is not request.node]
    marks = [item.get_closest_marker("promise") for item in items]
    assert [item.nodeid for item, mark in zip(items, marks, strict=True) if mark is None] == []
    counts = collections.Counter(mark.args[0] for mark in marks)
    assert set(counts) <= set(faulty.PROMISES)
    stored = faulty.stored_counts()
    assert set(stored) == set(faulty.PROMISES), "write it with make test-faults FAULTS=--write-promises"
    if os.environ[WHOLE]:
        assert {name: n for name, (n, _) in stored.items()} == counts, "write it anew, see reports/README.md"
    assert {result for _, result in stored.values()} == {"held"}
