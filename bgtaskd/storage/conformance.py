# SPDX-License-Identifier: LGPL-2.1-or-later

"""What every Storage must do, as a pytest suite: ours pass it, and yours should.

    from bgtaskd.storage.conformance import StorageConformance

    class TestMine(StorageConformance):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)

Register it under the entry point group "bgtaskd.storage": a callable that makes one of a directory.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from bgtaskd.model import TEMPLATE, Result, State, StopReason, Task, TaskSpec
from bgtaskd.storage.interface import (
    ClearMessages,
    Message,
    PutConfig,
    PutFlag,
    PutMessage,
    PutSchedule,
    PutSpec,
    PutTask,
    Query,
    RemoveSchedule,
    RemoveTask,
    Storage,
)


def task(task_id: int, state: State = State.QUEUED, **values: object) -> Task:
    """A task to be stored."""
    spec = TaskSpec(
        name=str(values.pop("name", "job")),
        argv=("true", "-x"),
        env={"A": "ä"},
        retry_on=(Result.LOST,),
        properties={"MemoryMax": "1G"},
        settings={"w": [1, None]},
        merge_key="k",
    )
    base = Task(task_id, spec, 1000, "alice", 1000, state, created=1, updated=2)
    return replace(base, **values)  # type: ignore[arg-type]


class StorageConformance:
    """Derive a test class from this, with a fixture ``storage``: an empty one."""

    def test_a_task_comes_back_as_it_was(self, storage: Storage) -> None:
        """A task comes back as it was."""
        full = task(
            1,
            State.FAILED,
            attempt=2,
            result=Result.OOM_KILL,
            signal="SIGKILL",
            percent=12.5,
            total=8,
            finished=1,
            message="m\n\x1b",
            value={"a": 1},
            error="e",
            failure={"type": "E", "message": "ä", "traceback": "t\n"},
            started=3,
            ended=4,
            not_before=5,
            cpu_usec=6,
            memory_peak=7,
            io_read_bytes=8,
            io_write_bytes=9,
            stop_reason=StopReason.USER,
            boot_id="b",
            pid=10,
            retries_used=1,
        )
        storage.apply([PutTask(task(1)), PutTask(full)])
        assert storage.get(1) == full
        assert storage.get(2) is None

    def test_listing_filters_and_pages(self, storage: Storage) -> None:
        """Listing filters and pages."""
        states = list(State)
        tasks = [
            task(number, states[number % len(states)], name=f"n{number % 3}", owner_uid=number % 2)
            for number in range(1, 41)
        ]
        storage.apply([PutTask(one) for one in tasks])
        assert [one.id for one in storage.list(Query(limit=3))] == [40, 39, 38]
        assert [one.id for one in storage.list(Query(limit=2, before=10))] == [9, 8]
        assert {one.owner_uid for one in storage.list(Query(owner_uid=1))} == {1}
        assert {one.spec.name for one in storage.list(Query(name_glob="n[01]"))} == {"n0", "n1"}
        assert {one.state for one in storage.list(Query(states=[State.FAILED]))} == {State.FAILED}
        assert sum(storage.counts().values()) == 40
        ours = replace(task(41, State.RUNNING), spec=TaskSpec(TEMPLATE))
        for one in (ours, replace(ours, state=State.FINISHED, result=Result.SUCCESS)):
            storage.apply([PutTask(one)])
            assert sum(storage.counts().values()) == 40
        storage.apply([RemoveTask(41)])
        assert sum(storage.counts().values()) == 40

    def test_what_requests_an_app_is_listed_for_it(self, storage: Storage) -> None:
        """What requests an app is listed for it."""
        for number, app in enumerate(("shop", "bank", "shop"), 1):
            spec = TaskSpec("http", http={"app": app, "method": "GET", "path": "/"}, queue=app)
            storage.apply([PutTask(replace(task(number, owner_uid=number), spec=spec))])
        storage.apply([PutTask(task(4, owner_uid=3))])

        def listed(*apps: str, **only: Any) -> list[int]:
            return [one.id for one in storage.list(Query(or_apps=apps, **only))]

        assert listed(owner_uid=3) == [4, 3]
        assert listed("shop", owner_uid=3) == [4, 3, 1]
        assert listed("shop", "bank", owner_uid=9) == [3, 2, 1]
        assert listed("shop", owner_uid=9, before=3, limit=1) == [1]
        assert listed("shop", owner_uid=3, queue="bank") == []
        assert listed("shop") == [4, 3, 2, 1]

    def test_counts_follow_every_change(self, storage: Storage) -> None:
        """Counts follow every change."""
        chance = random.Random(1)
        for _ in range(200):
            number = chance.randrange(1, 20)
            if chance.random() < 0.2:
                storage.apply([RemoveTask(number)])
            else:
                storage.apply([PutTask(task(number, chance.choice(list(State))))])
        everything = storage.list(Query(limit=1000))
        for state, number in storage.counts().items():
            assert number == sum(one.state is state for one in everything)

    def test_what_has_not_ended_is_found_a_waiting_retry_too(self, storage: Storage) -> None:
        """What has not ended is found a waiting retry too."""
        retry = task(3, State.DELAYED, result=Result.LOST, ended=9, not_before=10)
        storage.apply([PutTask(task(1, State.FINISHED, ended=5)), PutTask(task(2)), PutTask(retry)])
        assert [one.id for one in storage.unended()] == [2, 3]
        storage.apply([PutTask(replace(retry, state=State.QUEUED))])
        assert [one.id for one in storage.unended()] == [2, 3]

    def test_ids_are_never_used_again(self, storage: Storage) -> None:
        """Ids are never used again."""
        storage.apply([PutTask(task(7)), RemoveTask(7)])
        assert storage.next_task_id() == 8
        storage.raise_next_task_id(100)
        assert storage.next_task_id() == 100

    def test_mailbox_configuration_flags(self, storage: Storage) -> None:
        """Mailbox configuration flags."""
        messages = [Message(1, seq, "reload", {"x": seq}, seq) for seq in (1, 2, 3)]
        storage.apply([PutTask(task(1)), *(PutMessage(one) for one in messages)])
        assert list(storage.messages(1)) == messages
        assert list(storage.messages(1, after=2)) == messages[2:]
        storage.apply([ClearMessages(1, (2,))])
        assert [one.seq for one in storage.messages(1)] == [1, 3]
        storage.apply([ClearMessages(1, None), PutConfig(1, [1]), PutFlag("a", "b")])
        assert storage.last_message_seq(1) == 3
        assert storage.config(1) == [1]
        assert storage.flags() == {"a": "b"}
        storage.apply([PutFlag("a", None), RemoveTask(1)])
        assert storage.flags() == {}
        assert storage.config(1) is None

    def test_retention_finds_what_is_old_enough(self, storage: Storage) -> None:
        """Retention finds what is old enough."""
        storage.apply(
            [
                PutTask(task(1, State.FINISHED, result=Result.SUCCESS, ended=10)),
                PutTask(task(2, State.FAILED, result=Result.SIGNAL, ended=10)),
                PutTask(task(3, State.FINISHED, result=Result.SUCCESS, ended=50)),
                PutTask(task(4, State.DELAYED, result=Result.SIGNAL, ended=1)),
            ]
        )
        assert set(storage.ended_before(20, None, 10)) == {1}
        assert set(storage.ended_before(None, 20, 10)) == {1, 2}
        assert set(storage.ended_before(None, None, 10)) == set()

    def test_a_spec_is_replaced_and_found(self, storage: Storage) -> None:
        """A spec is replaced and found."""
        one = task(1, State.FAILED, result=Result.LOST, ended=3)
        storage.apply([PutTask(one)])
        changed = replace(one, spec=replace(one.spec, name="other", queue="q", group="g", weight=2))
        storage.apply([PutTask(replace(one, state=State.QUEUED)), PutSpec(changed)])
        found = storage.get(1)
        assert found is not None
        assert (found.spec, found.state) == (changed.spec, State.QUEUED)
        assert [one.id for one in storage.list(Query(group="g", queue="q"))] == [1]
        assert list(storage.list(Query(group="h"))) == []
        assert [one.id for one in storage.list(Query(kinds=["record", "command"]))] == [1]
        assert list(storage.list(Query(kinds=["record"]))) == []

    def test_what_came_of_the_last(self, storage: Storage) -> None:
        """What came of the last."""
        storage.apply(
            [
                PutTask(
                    task(1, State.FINISHED, result=Result.SUCCESS, started=5, ended=9, cpu_usec=2)
                ),
                PutTask(task(2, State.STOPPED, result=Result.STOPPED, ended=9, owner_uid=2)),
                PutTask(task(3)),
                PutTask(
                    replace(task(4, State.FINISHED, result=Result.SUCCESS), spec=TaskSpec(TEMPLATE))
                ),
            ]
        )
        assert [tuple(one) for one in storage.lately_ended(None, None)] == [
            ("job", "stopped", None, None, None),
            ("job", "success", 4, 2, None),
        ]
        assert len(storage.lately_ended(2, None)) == 1
        assert list(storage.lately_ended(None, "x*")) == []

    def test_schedules(self, storage: Storage) -> None:
        """Schedules."""
        storage.apply(
            [PutSchedule("a", {"x": [1]}), PutSchedule("b", {}), PutSchedule("a", {"x": 2})]
        )
        storage.apply([RemoveSchedule("b"), RemoveSchedule("none")])
        assert storage.schedules() == {"a": {"x": 2}}
