"""The store: revisions, subscribers, triggers, and many threads at once."""

import threading

import pytest

from sdbridge.parameters.store import Change, ParameterStore


@pytest.fixture
def store() -> ParameterStore:
    return ParameterStore()


def heard(store: ParameterStore) -> list[Change]:
    changes: list[Change] = []
    store.subscribe(changes.append)
    return changes


def test_a_change_makes_one_revision_and_is_heard_once(store):
    changes = heard(store)
    outcome = store.set_many({"strength": 0.3, "steps": 2}, "test")
    assert outcome.revision == 1 and not outcome.rejected
    assert [(dict(c.values), c.revision, c.source) for c in changes] == [
        ({"strength": 0.3, "steps": 2}, 1, "test")
    ]


def test_an_equal_value_changes_nothing(store):
    store.set("strength", 0.3)
    changes = heard(store)
    assert store.set("strength", 0.3).revision == 1
    assert not changes


def test_a_refused_value_leaves_the_others_standing(store):
    outcome = store.set_many({"strength": 0.9, "no_such": 1, "seed": -5})
    assert store.get("strength") == 0.9
    assert [(r.name, r.code) for r in outcome.rejected] == [
        ("no_such", "SDB-PARAM-UNKNOWN"),
        ("seed", "SDB-PARAM-RANGE"),
    ]


def test_the_last_value_wins_but_every_trigger_fires(store):
    changes = heard(store)
    store.set_sequence([("strength", 0.1), ("panic", 1), ("strength", 0.2), ("panic", 1), ("panic", 0)])
    assert len(changes) == 1
    assert changes[0].values == {"strength": 0.2}
    assert changes[0].triggers == ("panic", "panic")


def test_names_aliases_and_addresses_reach_the_same_value(store):
    store.set("prompt", "a")
    store.set("/sdbridge/prompt/1/text", "b")
    assert store.get("prompt.1.text") == store.get("/sdbridge/prompt") == "b"


def test_unsubscribing_ends_it(store):
    changes: list[Change] = []
    end = store.subscribe(changes.append)
    end()
    end()
    store.set("strength", 0.1)
    assert not changes


def test_changes_arrive_in_order_of_revision_from_many_threads(store):
    changes = heard(store)

    def write(offset: int) -> None:
        for step in range(50):
            store.set(f"prompt.{offset}.weight", (step + 1) / 50)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [c.revision for c in changes] == list(range(1, 201))
    assert store.revision == 200


def test_a_subscriber_may_set_again(store):
    def answer(change: Change) -> None:
        if "strength" in change.values:
            store.set("steps", 4)

    store.subscribe(answer)
    store.set("strength", 0.2)
    assert store.get("steps") == 4 and store.revision == 2


def test_a_fault_in_a_subscriber_is_logged_and_reaches_neither_the_others_nor_the_setter(store, caplog):
    def broken(change: Change) -> None:
        raise ZeroDivisionError("half a surface")

    before = heard(store)
    end = store.subscribe(broken)
    after = heard(store)
    assert store.set("strength", 0.2).revision == 1
    assert [c.revision for c in before] == [c.revision for c in after] == [1]
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.exc_info and "broken" in record.getMessage()
    end()
    store.set("strength", 0.3)
    assert [c.revision for c in after] == [1, 2] and len(caplog.records) == 1
