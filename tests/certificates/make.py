"""Makes the certificates in this folder: `python3 make.py`, with the package `cryptography`.

An authority that no system trusts, whose key is thrown away, another one, and a server's certificate by the first for
`localhost`, `server.test` and `127.0.0.1`, with its key. They hold from 2020 to 2120. For tests alone.
"""

from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(subject, issuer, key, signing_key, extensions):
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2120, 1, 1))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing_key, hashes.SHA256()).public_bytes(PEM)


def authority(file, subject):
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = [(x509.BasicConstraints(ca=True, path_length=None), True)]
    Path(file).write_bytes(certificate(subject, subject, key, key, extensions))
    return key


signing_key = authority("ca.pem", "batchd test authority")
authority("other-ca.pem", "batchd test authority that signs nothing")
key = ec.generate_private_key(ec.SECP256R1())
names = [x509.DNSName("localhost"), x509.DNSName("server.test"), x509.IPAddress(ip_address("127.0.0.1"))]
extensions = [
    (x509.SubjectAlternativeName(names), False),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
]
server = certificate("server.test", "batchd test authority", key, signing_key, extensions)
Path("server.pem").write_bytes(server)
no_password = serialization.NoEncryption()
Path("server.key").write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, no_password))
