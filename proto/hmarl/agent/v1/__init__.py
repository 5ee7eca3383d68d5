"""``hmarl.agent.v1``: modules generated from agent.proto by proto/generate.py."""
