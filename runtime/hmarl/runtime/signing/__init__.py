"""Signed bundles, after the OpenSSF Model Signing specification (OMS) 1.0, so that other tools can check ours.

The signature is the file ``model.sig`` in the bundle, be it a directory or a zip: a Sigstore bundle (``envelope``) with
an in-toto statement (``statement``) that holds the digest of every other file. It is made and checked with keys of
elliptic curves, or with certificates (``keys``), without any network. ``checked`` ties it to what is read of a bundle.

Source: https://github.com/ossf/model-signing-spec, spec/v1.0.md.

Of this package ``keys`` alone needs ``cryptography`` (extra ``secure``), and imports it when it is used.
"""
