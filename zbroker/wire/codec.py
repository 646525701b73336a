"""Headers: typed values to JSON and back, and errors as they stand in a reply.

Decoding is one typed pass. Only when it fails is the header looked at a second time, leniently, to
answer with the client's own id and the right one of VERSION_UNSUPPORTED, UNKNOWN_OP and MALFORMED.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.wire import ops

_ResultT = TypeVar("_ResultT", bound=ops.Value)


class Reply(msgspec.Struct, omit_defaults=True, gc=False):
    """A reply as it is sent: exactly one of `result` and `error`."""

    id: int | str | None
    boot: str
    result: Any = None
    error: dict[str, Any] | None = None
    v: int = msgspec.field(default_factory=lambda: limits.PROTOCOL_VERSION)


class ReplyHead(msgspec.Struct, gc=False):
    """A reply as it is received; the result is decoded by the one who knows what was asked."""

    id: int | str | None = None
    boot: str = ""
    result: msgspec.Raw = msgspec.Raw()
    error: dict[str, Any] | None = None
    v: int = 0


class _Lenient(msgspec.Struct):
    id: Any = None
    v: Any = limits.PROTOCOL_VERSION
    op: Any = None
    reply: Any = True


_request_decoder = msgspec.json.Decoder(ops.AnyRequest)
_lenient_decoder = msgspec.json.Decoder(_Lenient)
_reply_decoder = msgspec.json.Decoder(ReplyHead)
_result_decoders = {row.name: msgspec.json.Decoder(row.result) for row in ops.TABLE.values()}
_encode = msgspec.json.Encoder().encode
_BROKEN = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError)


class BadRequest(Exception):
    """A header that is no request: what to answer, and under which id (None: unreadable)."""

    def __init__(self, request_id: int | str | None, error: ZBrokerError, reply: bool) -> None:
        super().__init__(str(error))
        self.request_id, self.error, self.reply = request_id, error, reply


def encode_request(request: ops.Request) -> bytes:
    """The header of a request."""
    return _encode(request)


def decode_request(header: bytes) -> ops.AnyRequest:
    """Reads the header of a request into its typed value.

    Raises:
        BadRequest: with the error to answer.
    """
    try:
        request: ops.AnyRequest = _request_decoder.decode(header)
    except _BROKEN as error:
        raise _explain(header, error) from None
    if request.v != limits.PROTOCOL_VERSION and type(request) is not ops.Hello:
        raise BadRequest(request.id, _version_error(request.v), request.reply)
    return request


def _explain(header: bytes, error: Exception) -> BadRequest:
    try:
        seen = _lenient_decoder.decode(header)
    except _BROKEN:
        text = f"the header is not a JSON object: {error}"
        return BadRequest(None, errors.Malformed(text), True)
    request_id = seen.id if _is_id(seen.id) else None
    wants_reply = seen.reply is not False
    if seen.v != limits.PROTOCOL_VERSION:
        return BadRequest(request_id, _version_error(seen.v), wants_reply)
    if not isinstance(seen.op, str) or seen.op not in ops.TABLE:
        unknown = errors.make("UNKNOWN_OP", f"operation {seen.op!r:.60} is not known here")
        return BadRequest(request_id, unknown, wants_reply)
    return BadRequest(request_id, errors.Malformed(f"{seen.op}: {error}"), wants_reply)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return 1 <= len(value) <= limits.REQUEST_ID_CHARS_MAX
    return type(value) is int and 0 <= value <= limits.INTEGER_MAX


def _version_error(version: Any) -> ZBrokerError:
    return errors.make(
        "VERSION_UNSUPPORTED",
        f"protocol version {version!r:.20}: {limits.PROTOCOL_VERSION_MIN} to "
        f"{limits.PROTOCOL_VERSION} are spoken here",
        min=limits.PROTOCOL_VERSION_MIN,
        max=limits.PROTOCOL_VERSION,
    )


def encode_result(request_id: int | str, boot: str, result: ops.Value) -> bytes:
    """The header of a reply that carries a result."""
    return _encode(Reply(request_id, boot, result))


def encode_error(request_id: int | str | None, boot: str, error: ZBrokerError) -> bytes:
    """The header of a reply that carries an error."""
    return _encode(Reply(request_id, boot, None, error_fields(error)))


def error_fields(error: ZBrokerError) -> dict[str, Any]:
    """An error as it stands in a reply or in one result of a list."""
    return {
        "code": error.code,
        "message": str(error)[:1000],
        "retryable": error.retryable,
        "maybe_stored": error.maybe_stored,
        **error.facts,
    }


def error_from(fields: dict[str, Any]) -> ZBrokerError:
    """The exception for the fields of an error that came over the wire; any code is fine."""
    rest = dict(fields)
    return errors.rebuild(
        str(rest.pop("code", "INTERNAL")),
        str(rest.pop("message", "")),
        bool(rest.pop("retryable", False)),
        bool(rest.pop("maybe_stored", False)),
        {name: value for name, value in rest.items() if name not in {"hint"}},
    )


def decode_reply(header: bytes) -> ReplyHead:
    """Reads the header of a reply; raises Malformed if it is none."""
    try:
        return _reply_decoder.decode(header)
    except _BROKEN as error:
        raise errors.Malformed(f"the header of a reply: {error}") from None


def decode_result(op: str, result: msgspec.Raw) -> Any:
    """Reads the result of operation `op` (its type is in `ops.TABLE`); raises Malformed."""
    try:
        return _result_decoders[op].decode(result)
    except _BROKEN as error:
        raise errors.Malformed(f"the result of {op}: {error}") from None
