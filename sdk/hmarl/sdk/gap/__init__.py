"""The price of deployment: one team, the same episodes, played rung by rung from its training to a bad link.

``ladder`` says what a rung is, ``faulted`` which ones there are under faults, ``playing`` plays them and ``kept`` keeps
their episodes; ``judging`` compares neighbours, ``suspects`` names what a loss is likely due to, ``document`` is what
comes out.
"""
