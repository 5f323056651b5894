"""What this machine can do: measured, and planned by."""
