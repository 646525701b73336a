"""Tag filters: a set of tags, any of which will do.

The bits of a record tell without decoding that none of the tags is in it; a record that may have
some is decoded and each message's tag compared, so the answer is exact.
"""

from __future__ import annotations

from zbroker import limits
from zbroker.errors import InvalidArgument

ANY = "*"


def parse(expression: str) -> list[str]:
    """The tags of `a || b`; an empty list for `*` or nothing: all messages.

    Raises:
        InvalidArgument: an empty tag between bars, or more than 64 tags.
    """
    text = expression.strip()
    if text in ("", ANY):
        return []
    tags = [tag.strip() for tag in text.split("||")]
    if not all(tags):
        raise InvalidArgument(f"tag expression {expression!r}: write it as `a || b`, or `*`")
    if len(tags) > limits.TAGS_A_FILTER_MAX:
        raise InvalidArgument(
            f"tag expression with {len(tags)} tags: at most {limits.TAGS_A_FILTER_MAX}"
        )
    return tags
