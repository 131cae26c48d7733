"""The loop in the field: scenarios with known truth, each with the figure of a naive rule and of the rule in use."""
