"""The Open Inference Protocol, version 2: modules generated from open_inference.proto, and the codec of its tensors.

Importing ``open_inference_pb2`` registers the protobuf package ``inference``, which is other people's name: nothing
imports it unless the protocol is asked for.
"""
