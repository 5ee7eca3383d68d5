"""``hmarl.agent.v1``: modules generated from agent.proto by proto/generate.py, and the codec of its messages.

``tensors`` turns arrays into messages and back, ``messages`` acts, replies and refusals. Both know protobuf, NumPy and
gRPC's status codes, and nothing else of hmarl.
"""
