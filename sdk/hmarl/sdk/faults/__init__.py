"""Faults on purpose: what deployment does to a team, as one model that evaluation, training and programs share.

``model`` says what goes wrong and how it is written, ``draws`` when, ``injector`` does it to arrays of B environments;
``hmarl.sdk.environments.faulty`` wraps an environment with it. ``link`` spoils real connections.
"""

from hmarl.sdk.faults.model import AgentFaults, FaultModel, Outage, parse_faults

__all__ = ["AgentFaults", "FaultModel", "Outage", "parse_faults"]
