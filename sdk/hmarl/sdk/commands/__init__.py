"""The SDK's command-line programs: hmarl-eval, hmarl-envs, hmarl-check-env."""
