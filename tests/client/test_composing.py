"""What a producer takes: a tag that no filter could ever select is refused before it is sent."""

from __future__ import annotations

import pytest

from zbroker import InvalidArgument, Message
from zbroker.client.composing import compose, compose_many
from zbroker.filters import tags


@pytest.mark.parametrize("tag", ["*", "a||b", "||", " a", "a ", " "])
def test_tag_that_no_filter_could_select_is_refused(tag: str) -> None:
    with pytest.raises(InvalidArgument, match="no filter could select it"):
        compose(b"x", tag, (), None)
    with pytest.raises(InvalidArgument, match="no filter could select it"):
        compose_many([b"fine", Message(b"x", tag=tag)], 10, 1000)


@pytest.mark.parametrize("tag", ["a", "a|b", "a b", "a*", "größer"])
def test_tag_that_is_taken_selects_itself(tag: str) -> None:
    assert compose(b"x", tag, (), None).items[0].tag == tag
    assert tags.parse(tag) == [tag]
