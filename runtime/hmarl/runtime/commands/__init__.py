"""The runtime's command-line programs: hmarl-agent, hmarl-fleet, hmarl-sign, hmarl-verify.

An agent process should be small and start at once: what it needs is imported when its options are known to be right.
"""
