"""What a policy acts in: simulators, rollouts, perturbations, videos."""
