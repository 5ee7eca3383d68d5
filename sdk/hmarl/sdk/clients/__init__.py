"""Clients of served policies, and the policy in this process behind the same interface."""
