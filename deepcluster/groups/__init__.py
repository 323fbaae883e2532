"""From final features to the clusters a person sees: neighbour graph, cut, merge tree, choice of k, confidence, map."""
