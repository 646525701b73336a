"""What operators do: the asyncio face of `zbroker.Admin`."""

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
    from zbroker.client.asyncio import Client


class Admin:
    """See `zbroker.Admin`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create_topic(
        self, name: str, queues: int = limits.QUEUES_A_TOPIC_DEFAULT
    ) -> TopicInfo:
        """See `zbroker.Admin.create_topic`."""
        found: TopicInfo = await self._run(admin_flows.create_topic(name, queues))
        return found

    async def update_topic(self, name: str, queues: int) -> TopicInfo:
        """See `zbroker.Admin.update_topic`."""
        found: TopicInfo = await self._run(admin_flows.update_topic(name, queues))
        return found

    async def delete_topic(self, name: str) -> None:
        """See `zbroker.Admin.delete_topic`."""
        await self._run(admin_flows.delete_topic(name))

    async def topics(self) -> list[str]:
        """See `zbroker.Admin.topics`."""
        found: list[str] = await self._run(admin_flows.topics())
        return found

    async def topic(self, name: str) -> TopicInfo:
        """See `zbroker.Admin.topic`."""
        found: TopicInfo = await self._run(admin_flows.topic(name))
        return found

    async def cluster(self) -> list[BrokerInfo]:
        """See `zbroker.Admin.cluster`."""
        found: list[BrokerInfo] = await self._run(admin_flows.cluster())
        return found

    async def offsets(self, topic: str) -> dict[Queue, tuple[int, int]]:
        """See `zbroker.Admin.offsets`."""
        found: dict[Queue, tuple[int, int]] = await self._run(admin_flows.offsets(topic, -1))
        return found

    async def offsets_at(self, topic: str, time: datetime) -> dict[Queue, int]:
        """See `zbroker.Admin.offsets_at`."""
        flow = admin_flows.offsets(topic, wall_ms_of(time))
        found: dict[Queue, int] = await self._run(flow)
        return found

    async def groups(self) -> list[GroupInfo]:
        """See `zbroker.Admin.groups`."""
        found: list[GroupInfo] = await self._run(group_flows.groups())
        return found

    async def group(self, name: str) -> GroupInfo:
        """See `zbroker.Admin.group`."""
        found: GroupInfo = await self._run(group_flows.group(name))
        return found

    async def members(self, name: str) -> list[MemberInfo]:
        """See `zbroker.Admin.members`."""
        found: list[MemberInfo] = await self._run(group_flows.members(name))
        return found

    async def lag(self, name: str) -> GroupLag:
        """See `zbroker.Admin.lag`."""
        found: GroupLag = await self._run(group_flows.lag(name))
        return found

    async def reset(
        self,
        group: str,
        topic: str,
        to: To,
        *,
        dry_run: bool = False,
        queues: Iterable[Queue | int] | None = None,
    ) -> list[QueueReset]:
        """See `zbroker.Admin.reset`."""
        flow = reset_flows.reset(group, topic, to, dry_run, queues)
        found: list[QueueReset] = await self._run(flow)
        return found

    async def delete_group(self, name: str) -> None:
        """See `zbroker.Admin.delete_group`."""
        await self._run(group_flows.delete_group(name))

    async def dead_letters(
        self,
        group: str,
        limit: int = limits.DEAD_LETTERS_LISTED,
        after: DeadLetterInfo | None = None,
    ) -> list[DeadLetterInfo]:
        """See `zbroker.Admin.dead_letters`."""
        flow = dead_letter_flows.listed(group, limit, after)
        found: list[DeadLetterInfo] = await self._run(flow)
        return found

    async def resend(
        self,
        group: str,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        *,
        dry_run: bool = False,
    ) -> list[DeadLetterOutcome]:
        """See `zbroker.Admin.resend`."""
        flow = dead_letter_flows.resend(group, ids, limit, dry_run)
        found: list[DeadLetterOutcome] = await self._run(flow)
        return found

    async def purge(
        self,
        group: str,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
        *,
        dry_run: bool = False,
    ) -> list[DeadLetterOutcome]:
        """See `zbroker.Admin.purge`."""
        flow = dead_letter_flows.purge(group, ids, limit, dry_run)
        found: list[DeadLetterOutcome] = await self._run(flow)
        return found

    async def _run(self, flow: Flow) -> Any:
        return await self._client.run(flow, limits.CLIENT_TIMEOUT_S)
