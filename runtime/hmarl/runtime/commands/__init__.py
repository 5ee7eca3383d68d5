"""The runtime's command-line programs: hmarl-agent, hmarl-fleet, hmarl-verify.

They use argparse: an agent process should be small and start at once.
"""
