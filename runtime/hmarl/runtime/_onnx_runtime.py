"""ONNX Runtime, told to keep to itself; whoever needs it takes it from here.

From 1.29 on, the official packages send what they are used for to Microsoft, on Linux too, unless this variable is set
before the first import: events over the network, and a device's id and a data base in the user's cache. A program that
imported ONNX Runtime before has begun to; the call afterwards stops what can still be stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.disable_telemetry_events()

__all__ = ["ort"]
