"""Everything that has parameters: the scan, the backbones, the policy and its trainer."""
