"""Which pools of which models go where, and how many racks to buy."""
