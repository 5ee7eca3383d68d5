"""hmarl-train, hmarl-export and hmarl-algorithms."""
