"""What is stored: studies and their trials in a database."""
