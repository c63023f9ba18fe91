"""What `jaxift selfcheck` looks at: software, devices, their speed, a golden score, checkpoints. Each makes lines."""
