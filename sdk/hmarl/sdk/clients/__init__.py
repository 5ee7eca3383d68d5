"""Clients of served policies, and the policy in this process behind the same interface."""

from hmarl.runtime.output import quieten_grpc

quieten_grpc("ERROR")  # in the user's own program; before the modules of this package import gRPC
