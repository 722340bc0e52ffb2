"""Teams: who is in them, who may change that, and the links by which people come."""
