"""Frames through a websocket, either way: from a server that we connect to, or from a tracker that connects to us.

Text messages are JSON (`payload`, "json" or "hand"), binary ones are the binary layout. As a server we listen on this
machine alone unless a token is asked for, take one tracker at a time (two would mix), and refuse browsers unless their
origin is named, for any page that is open on this machine could otherwise send gestures. The token comes as the header
`Authorization: Bearer ...`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.http11 import Request, Response
from websockets.typing import Origin

from sensors.sources.live import LiveSource, ReconnectingSource, Unreachable
from sensors.sources.payload import DECODERS, decode_binary
from sensors.sources.settings import refuse_bad_time, refuse_unless, secret
from sensors.stream import Clock, SensorError, StreamInfo

OPEN_S, CLOSE_S, PING_S = 5.0, 1.0, 5.0
MOST_BYTES = 65_536  # of a message
CONNECTION: dict[str, Any] = {  # of either side
    "compression": None,
    "open_timeout": OPEN_S,
    "ping_interval": PING_S,
    "ping_timeout": PING_S,
    "close_timeout": CLOSE_S,
    "max_size": MOST_BYTES,
}
TEXTS = ("json", "hand")
TRY_AGAIN_LATER = 1013


@dataclass(frozen=True)
class WebsocketConfig:
    """A server that sends frames."""

    uri: str  # ws://host:port/path, or wss:// for TLS
    text: str = "json"  # or hand: what text messages are
    token_env: str = ""
    token_file: str = ""
    ca_file: str = ""  # of the server's certificate, if not one of the system's
    give_up_after_s: float = 30.0

    def __post_init__(self) -> None:
        refuse_unless(self.uri.startswith(("ws://", "wss://")), "websocket", "uri", self.uri, "ws:// or wss://")
        refuse_unless(self.text in TEXTS, self.uri, "text", self.text, " or ".join(TEXTS))
        refuse_bad_time(self.uri, "give_up_after_s", self.give_up_after_s)
        if self.ca_file and not self.uri.startswith("wss://"):
            raise SensorError(f"{self.uri}: ca_file is given but this is no TLS; write wss://.")


@dataclass(frozen=True)
class WebsocketServerConfig:
    """Where a tracker connects to us."""

    port: int
    host: str = "127.0.0.1"
    text: str = "json"
    token_env: str = ""
    token_file: str = ""
    origin: str = ""  # of pages that may connect, such as https://tracker.example
    cert_file: str = ""  # for TLS
    key_file: str = ""
    give_up_after_s: float = 30.0  # without a tracker

    def __post_init__(self) -> None:
        refuse_unless(0 <= self.port < 65536, self.where, "port", self.port, "0 to 65535")
        refuse_unless(self.text in TEXTS, self.where, "text", self.text, " or ".join(TEXTS))
        refuse_bad_time(self.where, "give_up_after_s", self.give_up_after_s)
        if bool(self.cert_file) != bool(self.key_file):
            raise SensorError(f"{self.where}: cert_file and key_file belong together; give both.")
        if not _is_loopback(self.host) and not (self.token_env or self.token_file):
            raise SensorError(
                f"{self.where}: anybody who reaches {self.host} could send gestures: name the environment variable of "
                "a token in token_env, or its file in token_file, or listen on 127.0.0.1."
            )

    @property
    def where(self) -> str:
        return f"ws-listen://{self.host}:{self.port}"


class WebsocketSource(ReconnectingSource):
    """Connects to a server."""

    def __init__(self, config: WebsocketConfig, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__(info, config.give_up_after_s, clock)
        self.config = config

    async def _session(self) -> None:
        config = self.config
        token = secret(config.uri, "token", config.token_env, config.token_file)
        context = _client_tls(config) if config.uri.startswith("wss://") else None
        try:
            async with connect(
                config.uri,
                ssl=context,
                additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                proxy=None,
                **CONNECTION,
            ) as connection:
                self._opened()
                async for message in connection:
                    received = self.clock()
                    self.take_message(
                        decode_binary if isinstance(message, bytes) else DECODERS[config.text], message, received
                    )
        except InvalidStatus as error:
            raise self._refused(error) from error
        except ssl.SSLCertVerificationError as error:
            raise SensorError(
                f"{config.uri}: the server's certificate is not trusted ({error}). Check the host and ca_file."
            ) from error
        except (InvalidURI, UnicodeError) as error:  # the latter of a host that cannot be one
            raise SensorError(f"{config.uri}: is no websocket's address ({error}).") from error
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
            raise Unreachable(
                f"{config.uri}: no websocket server answers ({error or type(error).__name__}). Start the tracker, or "
                "check the address."
            ) from error

    def _refused(self, error: InvalidStatus) -> SensorError:
        status = error.response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return SensorError(f"{self.config.uri}: the server refuses us (HTTP {status}). Check the token.")
        return Unreachable(
            f"{self.config.uri}: the server answers HTTP {status}, expected a websocket. Check the path."
        )


class WebsocketServerSource(LiveSource):
    """Waits for a tracker; `port` is known once it listens."""

    def __init__(self, config: WebsocketServerConfig, info: StreamInfo, clock: Clock = time.monotonic) -> None:
        super().__init__(info, clock)
        self.config = config
        self.port = config.port
        self._server: Server | None = None
        self._token: str | None = None
        self._giving_up: asyncio.TimerHandle | None = None

    async def connect(self) -> None:
        await self.close()
        config = self.config
        self._token = secret(config.where, "token", config.token_env, config.token_file)
        try:
            self._server = await serve(
                self._serve,
                config.host,
                config.port,
                ssl=_server_tls(config) if config.cert_file else None,
                process_request=self._admit,
                origins=[None, *([Origin(config.origin)] if config.origin else [])],
                **CONNECTION,
            )
        except (OSError, UnicodeError) as error:
            raise SensorError(f"{config.where}: cannot listen there ({error}). Choose another port.") from error
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        self._begin()
        self._wait_for_a_tracker()

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()
        self._end("was closed.")
        self._stop_waiting()

    async def _serve(self, connection: ServerConnection) -> None:
        if self.connected:
            await connection.close(TRY_AGAIN_LATER, "another tracker is connected")
            return
        self.connected = True
        self._stop_waiting()
        text = DECODERS[self.config.text]
        try:
            async for message in connection:
                received = self.clock()
                self.take_message(decode_binary if isinstance(message, bytes) else text, message, received)
        except ConnectionClosed:
            pass  # as good as a farewell: `connected` tells
        finally:
            self.connected = False
            if self._server is not None:
                self._wait_for_a_tracker()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "")
        if self._token and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "Send the token as Authorization: Bearer ...\n")
        return None

    def _wait_for_a_tracker(self) -> None:
        after = self.config.give_up_after_s
        why = f"no tracker has been connected to {self.config.where} for {after:g} s, given up. Start it."
        self._giving_up = asyncio.get_running_loop().call_later(after, self._end, why)

    def _stop_waiting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _client_tls(config: WebsocketConfig) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SensorError(f"{config.uri}: {config.ca_file} cannot be read as a certificate ({error}).") from error


def _server_tls(config: WebsocketServerConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise SensorError(
            f"{config.where}: {config.cert_file} and {config.key_file} cannot be read as certificates ({error})."
        ) from error
    return context
