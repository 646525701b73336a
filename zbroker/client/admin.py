"""What operators do: the blocking face of `zbroker.Admin`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zbroker import limits
from zbroker.client import admin_flows, dead_letter_flows, group_flows, reset_flows
from zbroker.client.admin_flows import BrokerInfo, TopicInfo
from zbroker.client.dead_letter_flows import DeadLetterInfo, DeadLetterOutcome
from zbroker.client.flow import Flow
from zbroker.client.group_flows import GroupInfo, MemberInfo
from zbroker.client.lag_flows import GroupLag
from zbroker.client.pull import wall_ms_of
from zbroker.client.reset_flows import QueueReset, To
from zbroker.names import Queue

if TYPE_CHECKING:
    from zbroker.client.blocking import Client


class Admin:
    """Topics, groups, dead letters and brokers; made by `Client.admin`.

    Every operation can be repeated.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def create_topic(
        self, name: str, queues: int = limits.QUEUES_A_TOPIC_DEFAULT
    ) -> TopicInfo:
        """Creates a topic of `queues` queues (1 to 1,024) at every broker group.

        Raises:
            Conflict: it exists with other queues.
        """
        return self._run(admin_flows.create_topic(name, queues))  # type: ignore[no-any-return]

    def update_topic(self, name: str, queues: int) -> TopicInfo:
        """Gives a topic more queues; fewer are a Conflict."""
        return self._run(admin_flows.update_topic(name, queues))  # type: ignore[no-any-return]

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and its messages; raises NotFound if there is none."""
        self._run(admin_flows.delete_topic(name))

    def topics(self) -> list[str]:
        """The names of all topics, sorted."""
        return self._run(admin_flows.topics())  # type: ignore[no-any-return]

    def topic(self, name: str) -> TopicInfo:
        """A topic with its queues and their offsets; raises NotFound."""
        return self._run(admin_flows.topic(name))  # type: ignore[no-any-return]

    def cluster(self) -> list[BrokerInfo]:
        """The broker groups that are known."""
        return self._run(admin_flows.cluster())  # type: ignore[no-any-return]

    def offsets(self, topic: str) -> dict[Queue, tuple[int, int]]:
        """[min, max) of each queue."""
        return self._run(admin_flows.offsets(topic, -1))  # type: ignore[no-any-return]

    def offsets_at(self, topic: str, time: datetime) -> dict[Queue, int]:
        """The first offset of each queue stored at or after `time` (an aware datetime)."""
        flow = admin_flows.offsets(topic, wall_ms_of(time))
        return self._run(flow)  # type: ignore[no-any-return]

    # --- groups -------------------------------------------------------------------------------

    def groups(self) -> list[GroupInfo]:
        """All consumer groups, by name."""
        return self._run(group_flows.groups())  # type: ignore[no-any-return]

    def group(self, name: str) -> GroupInfo:
        """A group with its subscription; raises NotFound."""
        return self._run(group_flows.group(name))  # type: ignore[no-any-return]

    def members(self, name: str) -> list[MemberInfo]:
        """The live members of a group and the queues of each; raises NotFound."""
        return self._run(group_flows.members(name))  # type: ignore[no-any-return]

    def lag(self, name: str) -> GroupLag:
        """How far a group is behind, in all and by queue.

        What a shard that does not answer would know is None, never 0.

        Raises:
            NotFound: no such group.
            Unavailable, Unreachable, Timeout: nobody answers who knows what it reads.
        """
        return self._run(group_flows.lag(name))  # type: ignore[no-any-return]

    def reset(
        self,
        group: str,
        topic: str,
        to: To,
        *,
        dry_run: bool = False,
        queues: Iterable[Queue | int] | None = None,
    ) -> list[QueueReset]:
        """Sets the progress of a group on a topic, also backwards, whether members live or not.

        Args:
            group: whose progress.
            topic: on which topic.
            to: "begin", "end", an aware datetime (the first message stored at or after it), an
                offset, or an offset by Queue or queue number.
            dry_run: only say what would be.
            queues: which queues; None: all, or those that `to` names.

        Returns:
            A row a queue, with an error for each that was refused.

        Raises:
            NotFound: no such group, topic or queue.
            InvalidArgument: `to` is none of these, or the group neither subscribes to the topic nor
                has progress on it.
        """
        flow = reset_flows.reset(group, topic, to, dry_run, queues)
        return self._run(flow)  # type: ignore[no-any-return]

    def delete_group(self, name: str) -> None:
        """Ends a group: its progress, retries and dead letters.

        Raises:
            NotFound: no such group.
            Conflict: it has members.
        """
        self._run(group_flows.delete_group(name))

    # --- dead letters ---------------------------------------------------------------------------

    def dead_letters(
        self,
        group: str,
        limit: int = limits.DEAD_LETTERS_LISTED,
        after: DeadLetterInfo | None = None,
    ) -> list[DeadLetterInfo]:
        """The messages that a group gave up and nobody has handled, with their bodies.

        Args:
            group: which one.
            limit: at most so many.
            after: the last one of the page before.

        Raises:
            NotFound: no such group.
            Unavailable, Unreachable, Timeout: a shard does not answer.
        """
        flow = dead_letter_flows.listed(group, limit, after)
        return self._run(flow)  # type: ignore[no-any-return]

    def resend(
        self,
        group: str,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        *,
        dry_run: bool = False,
    ) -> list[DeadLetterOutcome]:
        """Has dead letters delivered again, as if for the first time.

        Args:
            group: whose they are.
            ids: of the messages; None: all.
            limit: at most so many.
            dry_run: only say which.

        Returns:
            What became of each. What 30 s are too short for has failed, and can be repeated.

        Raises:
            NotFound: no such group.
        """
        flow = dead_letter_flows.resend(group, ids, limit, dry_run)
        return self._run(flow)  # type: ignore[no-any-return]

    def purge(
        self,
        group: str,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        *,
        dry_run: bool = False,
    ) -> list[DeadLetterOutcome]:
        """Gives dead letters up for good; arguments and outcomes as for `resend`."""
        flow = dead_letter_flows.purge(group, ids, limit, dry_run)
        return self._run(flow)  # type: ignore[no-any-return]

    def _run(self, flow: Flow) -> Any:
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)
