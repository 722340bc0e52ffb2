"""What runs of the models on one machine: each instance taken a step further."""
