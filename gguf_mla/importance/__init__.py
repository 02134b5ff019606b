"""How much each input column of a weight matters when it is rounded."""
