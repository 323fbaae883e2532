"""Networks: a backbone without its last layer, and a head that is new each round."""
