"""Certificates for development: an authority, the gateway's server certificate and one certificate per client.

Everything lies in one folder (mode 0700), every file has mode 0600 and changes by rename only. A server or client
has one file that holds its private key and its certificate, so that both change at once while Envoy watches the
folder. What is valid is kept; what is missing, damaged, of another authority or about to expire is made anew.
Keys are EC P-256. A client's certificate carries exactly one URI, `spiffe://foresight/<role>/<name>`.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

AUTHORITY_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=365)
RENEWED_BEFORE_EXPIRY = timedelta(days=7)
# Clocks of clients may be a little behind.
BACKDATED = timedelta(minutes=5)

SERVER_NAMES: Sequence[x509.GeneralName] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
)
TRUST_DOMAIN = "spiffe://foresight"

_KEY_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """The names of the files."""

    path: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate, which clients and the gateway trust."""
        return self.path / "ca.pem"

    @property
    def authority_key(self) -> Path:
        """The authority's private key."""
        return self.path / "ca.key"

    @property
    def server(self) -> Path:
        """The gateway's private key and certificate."""
        return self.path / "server.pem"

    def client(self, name: str) -> Path:
        """A client's private key and certificate."""
        return self.path / f"client-{name}.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, folder: CertificateFolder) -> Authority:
        """The authority in a folder. Raises OSError or ValueError when it is not there or not whole."""
        certificate = x509.load_pem_x509_certificate(folder.authority.read_bytes())
        key = serialization.load_pem_private_key(folder.authority_key.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("the authority's key does not belong to its certificate")
        return cls(certificate, key)

    def issue(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usage: ObjectIdentifier,
        not_before: datetime,
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> bytes:
        """A fresh private key and its certificate, in PEM. `usage` is server or client authentication."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(common_name, key.public_key(), self.certificate.subject, not_before, not_before + lifetime)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return _key_pem(key) + _certificate_pem(certificate)


def make_authority(not_before: datetime) -> Authority:
    """A new authority; it signs leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = "Foresight development authority"
    builder = _builder(name, key.public_key(), None, not_before, not_before + AUTHORITY_LIFETIME)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def ensure_certificates(folder: CertificateFolder, clients: Mapping[str, str], now: datetime) -> list[str]:
    """Makes or renews what is needed. `clients` maps the name of a client's file to its URI.

    Returns the names of the files that were written. One caller at a time.
    """
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.path.chmod(0o700)
    written: list[Path] = []
    try:
        authority: Authority | None = Authority.load(folder)
    except (OSError, ValueError):
        authority = None
    if authority is None or not _outlives(authority.certificate, now):
        authority = make_authority(now - BACKDATED)
        # The key first: a certificate without its key is recognised as broken, and made anew.
        _write(folder.authority_key, _key_pem(authority.key))
        _write(folder.authority, _certificate_pem(authority.certificate))
        written += [folder.authority_key, folder.authority]
    leaves = [(folder.server, "foresight gateway", SERVER_NAMES, ExtendedKeyUsageOID.SERVER_AUTH)]
    leaves += [
        (folder.client(name), name, (x509.UniformResourceIdentifier(uri),), ExtendedKeyUsageOID.CLIENT_AUTH)
        for name, uri in clients.items()
    ]
    for path, common_name, names, usage in leaves:
        if not _is_good(path, authority, names, now):
            _write(path, authority.issue(common_name, names, usage, now - BACKDATED))
            written.append(path)
    return [path.name for path in written]


def _is_good(path: Path, authority: Authority, names: Sequence[x509.GeneralName], now: datetime) -> bool:
    try:
        data = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        key = serialization.load_pem_private_key(data, password=None)
        certificate.verify_directly_issued_by(authority.certificate)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return key.public_key() == certificate.public_key() and list(found) == list(names) and _outlives(certificate, now)


def _outlives(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEWED_BEFORE_EXPIRY


def _builder(
    common_name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name | None,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before.astimezone(UTC))
        .not_valid_after(not_after.astimezone(UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _KEY_USAGES})


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    """Replaces a file by rename, mode 0600."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
