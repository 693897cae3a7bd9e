"""Where an MQTT broker is, and how it is entered."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from sensors.sources.settings import refuse_unless, secret
from sensors.stream import SensorError

PORT, TLS_PORT = 1883, 8883


@dataclass(frozen=True)
class MqttBroker:
    """A password is never in a configuration, only where it is kept.

    Raises:
        SensorError: a field is not what it should be, or goes without another one.
    """

    host: str
    port: int = 0  # 0: 1883, or 8883 with TLS
    user: str = ""
    password_env: str = ""  # an environment variable
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""  # of the broker's certificate, if not one of the system's
    cert_file: str = ""  # our own certificate, where the broker asks for one
    key_file: str = ""

    def __post_init__(self) -> None:
        where = f"mqtt {self.host or '(no host)'}"
        refuse_unless(_is_host(self.host), where, "host", self.host, "a name or an address")
        refuse_unless(0 <= self.port < 65536, where, "port", self.port, "0 to 65535")
        if (self.password_env or self.password_file) and not self.user:
            raise SensorError(f"{where}: a password without a user; name the user too.")
        if self.user and not (self.password_env or self.password_file):
            raise SensorError(
                f"{where}: user {self.user} without a password: name the environment variable that holds it in "
                "password_env, or its file in password_file."
            )
        if not self.tls and (self.ca_file or self.cert_file or self.key_file):
            raise SensorError(f"{where}: certificates are given but tls is off; turn it on.")
        if bool(self.cert_file) != bool(self.key_file):
            raise SensorError(f"{where}: cert_file and key_file belong together; give both.")
        if not self.port:
            object.__setattr__(self, "port", TLS_PORT if self.tls else PORT)

    @property
    def uri(self) -> str:
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"

    def password(self) -> str | None:
        return secret(self.uri, "password", self.password_env, self.password_file)

    def context(self) -> ssl.SSLContext | None:
        """None without TLS.

        Raises:
            SensorError: a file of certificates cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(file for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise SensorError(f"{self.uri}: {files} cannot be read as certificates ({error}).") from error
        return context


def refuse_bad_topic(where: str, topic: str) -> None:
    """One with wildcards would mix streams, or robots."""
    fine = bool(topic) and not set(topic) & set("+#\0")
    refuse_unless(fine, where, "topic", topic, "one topic, without the wildcards + and #")


def _is_host(name: str) -> bool:
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False
