"""Runs the global server: MongoDB, rounds, the Kafka feed, REST; until SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from config.child import free_port, port_is_taken
from config.settings import MongoSettings, ServerSettings, Settings
from flead.errors import BadConfiguration, PortTaken, Unavailable
from flead.signatures import public_text
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.heads import SmallHeads
from global_server.access.tokens import SECRET_FILE
from global_server.app import create_app
from global_server.backups import Backups
from global_server.feed import UpdateFeed
from global_server.held_out import HeldOut, HeldOutReadings
from global_server.intake import settle_memory
from global_server.publisher import ModelPublisher
from global_server.rounds import RoundService
from global_server.schedule import Scheduler
from global_server.secure import SecureSums
from global_server.signing import signing_key
from global_server.telemetry import MeasuredService, Telemetry
from storage.access import AccessRepository, AuditRepository
from storage.connection import Client, connect, open_database, ping
from storage.embedded import embedded_mongod
from storage.reader import kept_secret
from storage.rounds import RoundRepository
from storage.schema import apply_schema

LOG = logging.getLogger(__name__)

START_LIMIT_S = 30.0
"""How long MongoDB may take to answer at the start, s."""


@dataclass(frozen=True)
class Pages:
    """Pages for people beside the REST interface.

    Attributes
    ----------
    path:
        where they are
    mount:
        puts them onto the application; what it returns is left when the server ends
    """

    path: str
    mount: Callable[[FastAPI, RoundService, Guard, Audit], AbstractContextManager[None]]


def serve(
    settings: Settings,
    port: int | None = None,
    run_dir: Path | None = None,
    *,
    own_mongod: bool = False,
    pages: Pages | None = None,
) -> None:
    """Run the server until SIGTERM or SIGINT; call it from the main thread.

    Parameters
    ----------
    port:
        of the REST interface; without it, `server.port`
    run_dir:
        where it writes, the embedded mongod, too; without it, `run_dir` of the settings
    own_mongod:
        start the embedded mongod unless `mongodb.uri` is set
    pages:
        what to show to people

    Raises
    ------
    PortTaken
        where another process listens on the port
    Unavailable
        where MongoDB does not answer within 30 s
    """
    if run_dir:
        settings = settings.model_copy(update={"run_dir": run_dir})
    with ExitStack() as stack:
        for name in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, name, signal.signal(name, _leave))
        listener = stack.enter_context(_listen(settings.server.host, port or settings.server.port))
        mongodb = settings.mongodb
        if own_mongod and not mongodb.uri:
            mongodb = _own_mongod(stack, mongodb, settings.run_dir)
        client = stack.enter_context(connect(mongodb))
        _wait_for(client, mongodb)
        database = open_database(client, mongodb)
        apply_schema(database, mongodb)
        publisher = ModelPublisher(settings.kafka.servers)
        key = signing_key(settings)
        held_out = _held_out(stack, settings)
        service = MeasuredService(
            RoundRepository(database), settings.aggregation, publisher, key=key, held_out=held_out,
            seed=settings.learner.seed, on_stable=Backups(settings.run_dir, settings.aggregation.backups).write,
        )  # fmt: skip
        service.telemetry = Telemetry()
        service.load()
        scheduler = Scheduler(service, publisher.check)
        feed = UpdateFeed(service, settings.kafka.servers)
        for thread in (scheduler, feed):
            stack.callback(thread.stop)
            thread.start()
        audit = Audit(AuditRepository(database))
        secret = kept_secret(settings.run_dir / SECRET_FILE)
        guard = Guard(audit, settings.server, AccessRepository(database), secret)
        app = create_app(
            service,
            guard=guard,
            audit=audit,
            telemetry=service.telemetry,
            sums=SecureSums(service, settings.secure),
            public_key=public_text(key.public_key()),
            kafka_connected=lambda: publisher.connected,
            site=pages.path if pages else None,
        )
        if pages:
            stack.enter_context(pages.mount(app, service, guard, audit))
        LOG.info("the global server listens on %s", _address(settings.server, listener))
        settle_memory()
        uvicorn.Server(http_of(app, settings.server)).run(sockets=[listener])


def _held_out(stack: ExitStack, settings: Settings) -> HeldOutReadings | None:
    """What updates are judged on, where reference devices are named."""
    defence = settings.aggregation.defence
    if not defence.held_out_devices:
        return None
    readings = HeldOutReadings(frozenset(defence.held_out_devices), defence.held_out_readings, settings.learner)
    follower = HeldOut(settings.kafka.servers, readings, settings.reading)
    stack.callback(follower.stop)
    follower.start()
    return readings


def http_of(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How HTTP is spoken: with TLS where there is a certificate; a proxy's word is taken only where there is one.

    Raises
    ------
    BadConfiguration
        where the certificate cannot be read, or its key
    """
    if settings.tls_certificate:
        try:
            # With a password, OpenSSL does not ask the terminal for that of an encrypted key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key, "")
        except OSError as error:  # ssl.SSLError is one
            raise BadConfiguration(
                "server.tls_certificate and server.tls_key: no certificate in PEM with its key, unencrypted "
                f"({error.strerror})"
            ) from None
    return uvicorn.Config(
        app,
        http=SmallHeads,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=5,
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.behind_proxy,
        forwarded_allow_ips=settings.proxies,
    )


def _address(settings: ServerSettings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _leave(_signal: int, _frame: object) -> None:
    """End through every `finally`; uvicorn raises its signal again once it has shut down."""
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortTaken(f"cannot listen on {host}:{port} ({error.strerror}): name another with --port") from None
    return listener


def _own_mongod(stack: ExitStack, settings: MongoSettings, run_dir: Path) -> MongoSettings:
    """Start the embedded mongod; on another port where the usual one is taken, for only we need to know it."""
    port = free_port() if port_is_taken(settings.port) else settings.port
    server = stack.enter_context(embedded_mongod(run_dir / "mongodb", port))
    return settings.model_copy(update={"uri": SecretStr(server.uri), "port": port})


def _wait_for(client: Client, settings: MongoSettings) -> None:
    """Wait until MongoDB can be written to."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return ping(open_database(client, settings))
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise Unavailable(f"gave up after {START_LIMIT_S:g} s: {error}") from None
            LOG.info("waiting for MongoDB: %s", error)
            time.sleep(0.2)
