"""Which certificate authorities are trusted: those that a variable names, else the system's, else each library's own.

requests and uv bring a list of authorities of their own, and so reject a company's proxy whose authority is in the
system's store, where git and apt find it.
"""

from __future__ import annotations

import os
from pathlib import Path

# The system's authorities in one file, on Debian and Arch, Fedora and RHEL, SUSE, Alpine; as in scripts/bootstrap.py.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# By which users name a file; requests reads the first two, uv and OpenSSL the third, git the last.
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "GIT_SSL_CAINFO")


def bundle() -> str | None:
    """The file, or the folder of SSL_CERT_DIR, with the trusted authorities; None for each library's own."""
    for name in (*VARIABLES, "SSL_CERT_DIR"):
        if value := os.environ.get(name):
            return value
    return next((path for path in BUNDLES if Path(path).is_file()), None)


def variables() -> dict[str, str]:
    """The variables by which programs trust the same authorities; one that the user has set keeps its value."""
    trusted = bundle()
    if trusted is None or not Path(trusted).is_file():
        return {}
    return {name: os.environ.get(name) or trusted for name in VARIABLES}
