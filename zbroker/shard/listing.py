"""Telling people of groups: `groups`, on every shard.

Shard 0 knows the groups that ever had members, and who they are; every shard also lists those of
which it has nothing but progress, and tells the subscription of one that is asked for by its name:
so much is known of a group while the directory is down.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import msgspec

from zbroker import errors, limits
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroups
from zbroker.shard.subscriptions import GroupTable, MemberRow
from zbroker.wire import ops
from zbroker.wire.frames import Arrived

_encode = msgspec.json.Encoder().encode


class Listing:
    """Decides `groups`.

    Args:
        table: of the directory; empty on every shard but 0.
        info: makes a member's row.
    """

    def __init__(
        self,
        table: GroupTable,
        groups: LocalGroups,
        answers: Answers,
        info: Callable[[MemberRow], ops.MemberInfo] | None,
    ) -> None:
        self._table, self._groups, self._answers, self._info = table, groups, answers, info

    def decide(self, event: Arrived, now: int) -> None:
        """Answers with a page of groups, or with one group and a page of its members."""
        request = event.request
        assert type(request) is ops.Groups
        known = self._table.by_name.get(request.group) or self._groups.by_name.get(request.group)
        if not request.group:
            self._answers.at_mark(event, self._page(request.after))
        elif known is not None:
            self._answers.at_mark(event, self._one(request.group, request.after))
        else:
            self._answers.refuse_at_mark(event, errors.make(
                "GROUP_NOT_FOUND", f"group {request.group} is not known here"
            ))

    def _page(self, after: str) -> ops.GroupsResult:
        names = {name for name in self._table.by_name if name > after}
        names.update(
            name for name, group in self._groups.by_name.items() if name > after and not group.id
        )
        page = heapq.nsmallest(limits.GROUPS_A_PAGE_MAX, names)
        rows: list[ops.GroupInfo] = []
        size = 0
        for name in page:
            row = self._row(name)
            size += len(_encode(row))
            if rows and size > limits.ROUTES_COST_MAX:
                break
            rows.append(row)
        return ops.GroupsResult(groups=rows, more=len(rows) < len(names))

    def _row(self, name: str) -> ops.GroupInfo:
        row = self._table.by_name.get(name)
        if row is None:
            return ops.GroupInfo(group=name)
        return ops.GroupInfo(
            group=name, members=self._table.others(row.id), route=self._table.route(row)
        )

    def _one(self, name: str, after: str) -> ops.GroupsResult:
        one = self._row(name)
        local = self._groups.by_name.get(name)
        if one.route is None and local is not None and local.id:
            one.route = ops.GroupRoute(
                name, local.id, local.version, subscription=local.subscription
            )
        clients = self._table.clients.get(one.route.group_id, {}) if one.route else {}
        left = sorted(client_id for client_id in clients if client_id > after)
        size = len(_encode(one))
        for client_id in left:
            assert one.route is not None and self._info is not None
            members = self._table.members[one.route.group_id]
            row = self._info(members[clients[client_id]])
            size += len(_encode(row))
            if one.member_rows and size > limits.ROUTES_COST_MAX:
                break
            one.member_rows.append(row)
        return ops.GroupsResult(groups=[one], more=len(one.member_rows) < len(left))
