"""The server's own key: global models are signed with it, and who adopts them may hold it to account."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import SecretStr

from config.settings import Settings
from flead.errors import BadConfiguration, CorruptRunFolder
from storage.reader import keep_secret

KEY_FILE = "server/signing-key.pem"
"""In the run folder; only its owner can read it."""


def signing_key(settings: Settings) -> Ed25519PrivateKey:
    """Read the server's key; made when it is first asked for, unless `server.signing_key` names a file.

    Raises
    ------
    BadConfiguration
        where the named file holds no Ed25519 key
    CorruptRunFolder
        where the run folder's does not
    """
    named = settings.server.signing_key
    path = named or settings.run_dir / KEY_FILE
    if named is None and not path.exists():
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        keep_secret(path, SecretStr(text.strip()))
    try:
        found = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        if named is not None:
            raise BadConfiguration(f"server.signing_key: {named} holds no unencrypted Ed25519 key in PEM")
        raise CorruptRunFolder(f"{path} holds no Ed25519 key: move it away, and the server makes another")
    return found
