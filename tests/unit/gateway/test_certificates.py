"""The certificate folder: made once, kept, renewed in time, repaired when damaged."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.certificates import CertificateFolder, ensure_certificates
from gateway.policy import APPLICATION, OPERATOR

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CLIENTS = {"operator": OPERATOR.identity("local"), "application": APPLICATION.identity("local")}
LEAVES = {"server.pem", "client-operator.pem", "client-application.pem"}


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    made = CertificateFolder(tmp_path / "certificates")
    assert set(ensure_certificates(made, CLIENTS, NOW)) == {"ca.key", "ca.pem", *LEAVES}
    return made


def test_only_the_owner_can_read_anything(folder: CertificateFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.path.iterdir()} == {0o600}


def test_valid_certificates_are_kept(folder: CertificateFolder) -> None:
    before = {file: file.read_bytes() for file in folder.path.iterdir()}
    assert ensure_certificates(folder, CLIENTS, NOW + timedelta(days=300)) == []
    assert {file: file.read_bytes() for file in folder.path.iterdir()} == before


def test_leaves_are_renewed_in_their_last_week_and_the_authority_is_kept(folder: CertificateFolder) -> None:
    assert ensure_certificates(folder, CLIENTS, NOW + timedelta(days=357)) == []
    assert set(ensure_certificates(folder, CLIENTS, NOW + timedelta(days=359))) == LEAVES


def test_a_new_authority_signs_everything_anew(folder: CertificateFolder) -> None:
    assert set(ensure_certificates(folder, CLIENTS, NOW + timedelta(days=3645))) == {"ca.key", "ca.pem", *LEAVES}


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_a_damaged_authority_is_replaced_with_all_that_it_signed(
    folder: CertificateFolder, name: str, content: bytes | None
) -> None:
    file = folder.path / name
    file.unlink() if content is None else file.write_bytes(content)
    assert set(ensure_certificates(folder, CLIENTS, NOW)) == {"ca.key", "ca.pem", *LEAVES}


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_damaged_leaf_is_replaced_alone(folder: CertificateFolder, name: str) -> None:
    file = folder.path / name
    file.write_bytes(file.read_bytes()[:100])
    assert ensure_certificates(folder, CLIENTS, NOW) == [name]


def test_a_certificate_follows_its_identity(folder: CertificateFolder) -> None:
    renamed = {**CLIENTS, "operator": OPERATOR.identity("other")}
    assert ensure_certificates(folder, renamed, NOW) == ["client-operator.pem"]
    certificate = x509.load_pem_x509_certificate(folder.client("operator").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://foresight/operator/other"]
    assert len(list(names)) == 1


def test_a_server_certificate_is_for_servers_and_a_client_certificate_for_clients(folder: CertificateFolder) -> None:
    for file, usage in (
        (folder.server, ExtendedKeyUsageOID.SERVER_AUTH),
        (folder.client("operator"), ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
