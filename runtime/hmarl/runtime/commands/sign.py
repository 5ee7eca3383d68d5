"""hmarl-sign: sign a bundle, or make the key pair to do so."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hmarl.runtime.command_line import AS_JSON, PATH, argument, at_most_one, command, option
from hmarl.runtime.commands._common import run
from hmarl.runtime.errors import UsageError
from hmarl.runtime.signing.keys import PASSPHRASE_VARIABLE, Signer, new_key, read_passphrase


@command(
    "hmarl-sign",
    argument("bundle", "bundle directory or zip", PATH, required=False),
    option("--key", "sign BUNDLE with this private key (PEM)", PATH, shown="FILE"),
    option(
        "--certificate",
        "put this certificate of the key into the signature, with those that follow it in the file (PEM)",
        PATH,
        shown="FILE",
    ),
    option(
        "--new-key",
        "make a key pair: the private key in FILE, the public one beside it, as NAME.pub.pem",
        PATH,
        shown="FILE",
    ),
    option(
        "--passphrase-file",
        f"file with the passphrase of an encrypted key; without it, {PASSPHRASE_VARIABLE} is used",
        PATH,
        shown="FILE",
    ),
    AS_JSON,
    examples=("hmarl-sign --new-key team.pem", "hmarl-sign runs/mine/bundle --key team.pem"),
)
def sign(
    bundle: Path | None,
    key: Path | None,
    certificate: Path | None,
    new_key: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Sign a bundle after the OpenSSF Model Signing specification, or make a key pair for it.

    The signature is the file model.sig in the bundle; nothing else in the bundle changes. Hand out the public key:
    hmarl-verify, hmarl-agent, hmarl-fleet and hmarl-eval, told to trust it, take only bundles that you signed.
    Needs the extra 'secure': pip install 'hmarl[secure]'.
    """
    at_most_one(key=key, new_key=new_key)
    if new_key is not None:
        if bundle is not None or certificate is not None:
            raise UsageError("--new-key: got a bundle or certificate as well, expected nothing to sign")
        _make_pair(new_key, read_passphrase(passphrase_file), as_json)
        return
    if bundle is None:
        raise UsageError("BUNDLE: got nothing, expected BUNDLE (bundle directory or zip), or --new-key")
    if key is None:
        raise UsageError("--key: got nothing, expected FILE (the private key), as hmarl-sign --new-key makes one")
    signer = Signer(key, read_passphrase(passphrase_file), certificate)
    from hmarl.runtime.signing.checked import sign_bundle  # noqa: PLC0415 - a wrong key is reported at once

    signed = sign_bundle(bundle, signer)
    if as_json:
        print(json.dumps({"bundle": str(bundle), "bundle_sha256": signed.sha256, "signed_by": signer.name}))
    else:
        print(f"{bundle}: signed by {signer.name}")


def _make_pair(path: Path, passphrase: bytes | None, as_json: bool) -> None:
    public, fingerprint = new_key(path, passphrase)
    if as_json:
        print(json.dumps({"private_key": str(path), "public_key": str(public), "fingerprint": fingerprint}))
        return
    print(f"{path}: the private key, {'encrypted' if passphrase else 'not encrypted'}; keep it where you sign")
    print(f"{public}: the public key {fingerprint}; hand it to whoever runs your bundles")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(sign, arguments)


if __name__ == "__main__":
    sys.exit(main())
