"""A device's side of a secure sum over REST: its weights reach the global model, and nobody sees them.

`SecureDevice.give` does it all. Whoever has a loop of its own joins, and calls `Participation.step` from time to time.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from flead.errors import BadSecureSum, Unavailable, WrongPhase
from flead.messages import ArchitectureMessage
from flead.network import Architecture, Vector
from flead.secret_sharing import Randomness
from flead.secure_sum import Encoding, Keys, Party


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a secure sum ended for a device.

    Attributes
    ----------
    counted: whether our weights are in the sum: then our samples must not be sent again
    devices: how many are in it
    reason: why there is no sum, or why we are not in it
    """

    session: str
    counted: bool
    devices: int = 0
    reason: str | None = None


class SecureDevice:
    """Takes part in secure sums.

    Parameters
    ----------
    client:
        knows the server's address and shows this device's key
    fewest:
        devices that must be in a sum with us
    identity, trusted:
        our identity key, and those of the fleet by device, which did not come from the server; None: keys are taken
        as the server passes them on
    randomness:
        gives unpredictable bytes
    """

    def __init__(
        self, client: httpx.Client, device_id: str, *, fewest: int = 3, identity: Ed25519PrivateKey | None = None,
        trusted: Mapping[str, Ed25519PublicKey] | None = None, randomness: Randomness = os.urandom,
    ) -> None:  # fmt: skip
        self.device_id = device_id
        self._client = client
        self._fewest = fewest
        self._identity = identity
        self._trusted = trusted
        self._randomness = randomness

    def join(self, theta: Vector, architecture: Architecture, samples: int, cohort: str) -> Participation:
        """Take part in the sum that gathers devices of a cohort.

        Parameters
        ----------
        theta:
            (parameters,)
        samples:
            readings that we learned from since our weights were last counted

        Raises
        ------
        WrongPhase
            where none gathers
        BadSecureSum
            where our weights or samples are beyond what it takes, or it is not what it should be
        Unavailable
            where the server does not answer
        """
        body = {"device_id": self.device_id, "cohort": cohort, "architecture": architecture.as_dict()}
        found = self.call("POST", "join", json=body)
        try:
            encoding = Encoding.model_validate(found["encoding"])
            session, about = (
                str(found["id"]),
                Architecture.from_message(ArchitectureMessage.model_validate(found["architecture"])),
            )
        except (KeyError, TypeError, ValidationError):
            raise BadSecureSum("the server's session is not described as it should be") from None
        if about != architecture or theta.shape != (architecture.parameter_count,):
            raise BadSecureSum(f"the session is for {about}, and our model is {architecture}")
        party = Party(
            session, self.device_id, self._randomness, fewest=self._fewest, identity=self._identity,
            trusted=self._trusted,
        )  # fmt: skip
        return Participation(self, party, encoding, theta, samples)

    def give(
        self, theta: Vector, architecture: Architecture, samples: int, cohort: str, *, poll_s: float = 1.0,
        limit_s: float = 600.0, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Outcome:  # fmt: skip
        """Take part from beginning to end; see `join`. A server that is away for a while is asked again.

        Parameters
        ----------
        poll_s:
            how long to wait between two looks at the session, s
        limit_s:
            after which to give up, s
        """
        until = clock() + limit_s
        part: Participation | None = None
        while True:
            try:
                part = part or self.join(theta, architecture, samples, cohort)
                part.step()
            except Unavailable:
                if clock() >= until:
                    raise
            else:
                if part.outcome is not None:
                    return part.outcome
                if clock() >= until:
                    raise Unavailable(f"secure sum {part.session} did not end within {limit_s:g} s")
            sleep(poll_s)

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """One request; its answer, or one of our errors."""
        try:
            answer = self._client.request(method, f"/api/secure/{path}", **more)
            body = answer.json()
        except httpx.HTTPError as error:
            raise Unavailable(f"the global server does not answer: {error}") from None
        except ValueError:
            raise Unavailable(f"the global server answered {answer.status_code}, and no JSON") from None
        if answer.is_success and isinstance(body, dict):
            return body
        detail = str(body.get("detail", body) if isinstance(body, dict) else body)[:500]
        if answer.status_code in (404, 409):
            raise WrongPhase(detail)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise Unavailable(detail)
        raise BadSecureSum(f"the global server refused it ({answer.status_code}): {detail}")


class Participation:
    """One device in one session. `outcome` is there when it is over."""

    def __init__(self, device: SecureDevice, party: Party, encoding: Encoding, theta: Vector, samples: int) -> None:
        self.outcome: Outcome | None = None
        self.session = party.session
        self._device = device
        self._party = party
        self._values = encoding.encode(theta, samples)
        self._encoding = encoding
        self._done: set[str] = set()
        """The phases in which our part is done."""

    def step(self) -> str:
        """Do what the session waits for, where it is for us to do; the phase it is at afterwards.

        A step that failed because the server was away may be taken again.

        Raises
        ------
        BadSecureSum
            where the server asks for what would show our weights: leave this session
        Unavailable
            where it does not answer
        """
        try:
            found = self._device.call("GET", self._path())
            if found["phase"] in _STEPS and found["phase"] not in self._done:
                phase = str(found["phase"])
                found = _STEPS[phase](self, found)
                self._done.add(phase)
            if found["phase"] in ("done", "abandoned"):
                self._end(found)
        except WrongPhase as error:
            self.outcome = Outcome(self.session, counted=False, reason=str(error))
            return "left"
        except (KeyError, TypeError, ValueError) as error:
            raise BadSecureSum(f"the server's answer is not what it should be: {error!r}") from None
        return str(found["phase"])

    def _path(self, step: str = "") -> str:
        return f"sessions/{quote(self.session, safe='')}" + (f"/{step}" if step else "")

    def _end(self, found: dict[str, Any]) -> None:
        survivors = found.get("survivors") or []
        counted = found["phase"] == "done" and self._party.name in survivors
        reason = found.get("reason") or (None if counted else "the sum was made without us")
        self.outcome = Outcome(self.session, counted=counted, devices=len(survivors), reason=reason)

    def _post(self, step: str, **fields: Any) -> dict[str, Any]:
        return self._device.call("POST", self._path(step), json={"device_id": self._party.name, **fields})

    def _keys(self, _found: dict[str, Any]) -> dict[str, Any]:
        keys = self._party.keys
        return self._post(
            "keys", channel=_text(keys.channel), mask=_text(keys.mask), commitment=_text(keys.commitment),
            signature=_text(keys.signature),
        )  # fmt: skip

    def _shares(self, _found: dict[str, Any]) -> dict[str, Any]:
        found = self._device.call("GET", self._path("roster"))
        roster = {
            str(each["device_id"]): Keys(
                *(_bytes(each, name) for name in ("channel", "mask", "commitment", "signature"))
            )
            for each in found["devices"]
        }
        if len(roster) > self._encoding.devices:
            raise BadSecureSum(f"{len(roster)} devices, and the sum could overflow above {self._encoding.devices}")
        sealed = self._party.share(roster, int(found["threshold"]))
        return self._post("shares", shares={peer: _text(text) for peer, text in sealed.items()})

    def _masked(self, _found: dict[str, Any]) -> dict[str, Any]:
        found = self._device.call("GET", self._path("shares"), params={"device_id": self._party.name})
        masked = self._party.mask(self._values, {peer: _bytes(found["shares"], peer) for peer in found["shares"]})
        return self._post("masked", values=_text(masked.astype("<u8").tobytes()))

    def _unmask(self, found: dict[str, Any]) -> dict[str, Any]:
        if self._party.name not in found["survivors"]:
            raise WrongPhase("our values came too late: the sum is made without us")
        opened = self._party.open([str(name) for name in found["survivors"]])
        shares = {peer: {"kind": share.kind.value, "value": _text(share.value)} for peer, share in opened.items()}
        return self._post("unmask", shares=shares)


_STEPS: Mapping[str, Callable[[Participation, dict[str, Any]], dict[str, Any]]] = {
    "keys": Participation._keys,
    "shares": Participation._shares,
    "masked": Participation._masked,
    "unmask": Participation._unmask,
}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(among: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(among[name], validate=True)
    except (KeyError, TypeError, ValueError):
        raise BadSecureSum(f"the server's {name!r} is no base64") from None
