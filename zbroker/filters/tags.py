"""Tag filters: a set of tags, any of which will do.

The bits of a record tell without decoding that none of the tags is in it; a record that may have
some is decoded and each message's tag compared, so the answer is exact.
"""

from __future__ import annotations

from zbroker import limits
from zbroker.errors import InvalidArgument

ANY = "*"


def is_selectable(tag: str) -> bool:
    """Says whether an expression can name this tag."""
    return tag != ANY and "||" not in tag and tag.strip() == tag


def parse(expression: str) -> list[str]:
    """The tags of `a || b`; an empty list for `*` or nothing: all messages.

    Raises:
        InvalidArgument: no text, an empty tag between bars, a tag that no message can have, or more
            than 64 tags.
    """
    if not isinstance(expression, str):
        raise InvalidArgument(f"tag expression {expression!r:.40}: a str is wanted")
    text = str.strip(expression)
    if text in ("", ANY):
        return []
    tags = [tag.strip() for tag in text.split("||")]
    if not all(tags):
        raise InvalidArgument(f"tag expression {text!r:.200}: write it as `a || b`, or `*`")
    if len(tags) > limits.TAGS_A_FILTER_MAX:
        raise InvalidArgument(
            f"tag expression with {len(tags)} tags: at most {limits.TAGS_A_FILTER_MAX}"
        )
    for tag in tags:
        if not _fits(tag):
            raise InvalidArgument(f"tag {tag!r:.60}: at most {limits.TAG_BYTES_MAX} bytes of UTF-8")
    return tags


def _fits(tag: str) -> bool:
    try:
        return len(tag.encode()) <= limits.TAG_BYTES_MAX
    except UnicodeEncodeError:  # half a surrogate pair
        return False
